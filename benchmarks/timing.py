"""Two ways of doing the same work, timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_PAUSE = 0.2


@dataclass(frozen=True)
class Comparison:
    """Median seconds of a peer and of ours on the same work."""

    work: str
    peer: str
    peer_seconds: float
    our_seconds: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.peer_seconds / self.our_seconds

    def __str__(self) -> str:
        return (
            f"{self.work}: {self.peer} {self.peer_seconds:.3g} s, safetylib {self.our_seconds:.3g} s, "
            f"ratio {self.ratio:.2g}"
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
    result = Comparison(work, peer, *map(statistics.median, seconds))
    print(result, flush=True)
    return result
