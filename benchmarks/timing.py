"""Two ways of doing the same work, timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_PAUSE = 0.2


@dataclass(frozen=True)
class Comparison:
    """Seconds that a peer and ours took for the same work, run by run, in turn."""

    work: str
    peer: str
    peer_runs: tuple[float, ...]
    our_runs: tuple[float, ...]

    @property
    def peer_seconds(self) -> float:
        """The peer's median."""
        return statistics.median(self.peer_runs)

    @property
    def our_seconds(self) -> float:
        """Our median."""
        return statistics.median(self.our_runs)

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by the medians."""
        return self.peer_seconds / self.our_seconds

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of two runs that followed each other."""
        ratios = [theirs / ours for theirs, ours in zip(self.peer_runs, self.our_runs, strict=True)]
        return min(ratios), max(ratios)

    def __str__(self) -> str:
        return (
            f"{self.work}: {self.peer} {self.peer_seconds:.3g} s, safetylib {self.our_seconds:.3g} s, "
            f"ratio {self.ratio:.3g} ({self.spread[0]:.3g} to {self.spread[1]:.3g})"
        )


def compare(
    work: str,
    peer: str,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    repeats: int = 3,
    calls: int = 1,
    seconds_a_run: float = 0,
) -> Comparison:
    """Run both in turn, theirs first, after one warm-up of each; medians of ``repeats`` runs, in seconds a call.

    A run is ``calls`` calls, and more until it has lasted ``seconds_a_run``: what takes microseconds is otherwise timed while
    the processor wakes up. It begins after a short pause, as worker threads of the other side's library keep a core busy for
    some milliseconds after their work is done.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for side, run in zip(seconds, (theirs, ours), strict=True):
            time.sleep(_PAUSE)
            began, done, elapsed = time.perf_counter(), 0, 0.0
            while done < calls or elapsed < seconds_a_run:
                run()
                done, elapsed = done + 1, time.perf_counter() - began
            if turn:  # the first of each warms up
                side.append(elapsed / done)
    result = Comparison(work, peer, *map(tuple, seconds))
    print(result, flush=True)
    return result
