"""Absorption probabilities against PyDTMC (``pip install -e ".[benchmarks]"``), and closed forms against iteration."""

from __future__ import annotations

import numpy as np

from benchmarks.timing import Comparison, compare
from safetylib.chain import absorbing, updates


def random_absorbing_chain(states: int, absorbing_states: int, seed: int = 0) -> np.ndarray:
    """A dense stochastic matrix whose last states absorb."""
    matrix = np.random.default_rng(seed).dirichlet(np.ones(states), size=states)
    matrix[-absorbing_states:] = np.eye(states)[-absorbing_states:]
    return matrix


def absorption(states: int = 500) -> Comparison | None:
    """PyDTMC's absorption probabilities against ours; None, said in words, where PyDTMC is not installed."""
    try:
        from pydtmc import MarkovChain
    except ImportError:
        print('absorption: the peer is missing; pip install -e ".[benchmarks]"')
        return None
    matrix = random_absorbing_chain(states, 3)
    # The peer caches its answers: a fresh chain every time, made beforehand so that only the solve is timed.
    calls, repeats = 5, 3
    chains = iter([MarkovChain(matrix) for _ in range(calls * (repeats + 1))])
    theirs = MarkovChain(matrix).absorption_probabilities()
    ours = absorbing.absorption_probabilities(matrix)
    assert np.allclose(np.asarray(theirs).T, ours[:-3], atol=1e-8) or np.allclose(theirs, ours[:-3].T, atol=1e-8)
    return compare(
        f"absorption probabilities, {states} states",
        "PyDTMC",
        lambda: next(chains).absorption_probabilities(),
        lambda: absorbing.absorption_probabilities(matrix),
        repeats,
        calls,
    )


def closed_form(states: int = 50, steps: int = 1000) -> Comparison:
    """Escape probabilities of Q_0 ... Q_n under the additive rule: matrix iteration against the closed form."""
    matrix = np.full((states, states), 1 / states)
    bias, alpha, gamma = updates.pull(matrix, 0), 1e-3, 0.999
    setting = {"escape_0": 1 - 1 / states, "bias": bias[0, 0], "alpha": alpha, "gamma": gamma}

    def iterated():
        path = updates.iterate(
            lambda q, step: updates.additive_step(q, bias, step), matrix, alpha=alpha, gamma=gamma, n=steps
        )
        return np.array([1 - q[0, 0] for q in path])

    assert np.allclose(iterated(), updates.additive_escape(np.arange(steps + 1), **setting))
    return compare(
        f"escape after each of {steps} updates, {states} states",
        "iterating the matrix",
        iterated,
        lambda: updates.additive_escape(np.arange(steps + 1), **setting),
        seconds_a_run=0.1,
    )


def long_closed_form() -> Comparison:
    """The same over ten thousand updates, where the call itself no longer counts."""
    return closed_form(steps=10_000)


if __name__ == "__main__":
    absorption()
    closed_form()
    long_closed_form()
