"""Safety depth: the chain on positions, closed forms against brute force, known answers, properties, refusals."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetylib import claims
from safetylib.chain import absorbing
from safetylib.chain import depth as d
from safetylib.claims import Verdict
from safetylib.proofs import depth as proofs

settings.register_profile("chain", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("chain")

inf = np.inf
probabilities = st.floats(0, 1)
inner = st.floats(0.01, 0.99)
profiles = st.lists(probabilities, min_size=1, max_size=9).map(np.array)


def by_listing(rho):
    """F and A by listing every response: at each position refuse (and stop) or go on."""
    size = len(rho)
    completed, tokens = np.zeros(size + 1), np.zeros(size + 1)
    for k in range(size + 1):
        for stop in range(k, size + 1):  # refuses at position stop + 1, or completes
            chance = np.prod(1 - rho[k:stop]) * (rho[stop] if stop < size else 1)
            completed[k] += chance * (stop == size)
            tokens[k] += chance * (stop - k)
    return completed, tokens


@given(profiles)
def test_completion_and_leak_are_those_of_all_responses_listed(rho):
    completed, tokens = by_listing(rho)
    assert d.completion(rho) == pytest.approx(completed, abs=1e-12)
    assert d.leak(rho) == pytest.approx(tokens, abs=1e-12)


@given(st.lists(inner, min_size=1, max_size=9).map(np.array))
def test_completion_and_leak_come_from_the_fundamental_matrix(rho):
    size = rho.size
    chain = d.depth_chain(rho)
    harmful = chain[: size + 1][:, : size + 1]
    ends = [size, *range(size + 1, 2 * size + 2)]
    visits = absorbing.fundamental_matrix(chain, ends)
    assert d.completion(rho)[:-1] == pytest.approx(absorbing.absorption_probabilities(chain, ends)[:size, 0])
    assert d.leak(rho)[:-1] == pytest.approx(visits @ (1 - rho))
    assert harmful.diagonal()[:-1].sum() == 0


@given(profiles)
def test_a_longer_prefix_is_completed_no_less_often(rho):
    assert (np.diff(d.completion(rho)) >= 0).all()


@given(st.lists(inner, min_size=1, max_size=12).map(np.array))
def test_the_least_refusal_bounds_the_leak(rho):
    assert d.leak(rho).max() <= d.leak_ceiling(rho.min()) + 1e-12


@given(profiles, inner)
def test_safety_depth_is_the_longest_prefix_that_is_survived(rho, epsilon):
    survived = [k for k, f in enumerate(d.completion(rho)) if f <= epsilon]
    assert d.safety_depth(rho, epsilon) == max(survived, default=-1)


def test_everything_broadcasts_over_leading_axes():
    rho = np.random.default_rng(0).random((2, 3, 5))
    for function, size in ((d.completion, 6), (d.leak, 6), (lambda r: d.recovery(r, 2), 4)):
        table = function(rho)
        assert table.shape == (2, 3, size)
        assert table[1, 2] == pytest.approx(function(rho[1, 2]))
    assert d.safety_depth(rho, [0.1, 0.2, 0.3]).shape == (2, 3)
    shares = np.array([d.one_position(5, 1), d.uniform(5)])
    assert d.refusal_probabilities(shares[:, None], [0.5, 1, 2], 0.1).shape == (2, 3, 5)


# --- one position, even positions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_the_closed_forms_of_one_trained_position(length):
    for position, trained, untrained in product(range(1, length + 1), (0.5, 0.99, 1), (0, 0.03, 0.4)):
        rho = np.where(d.one_position(length, position) > 0, trained, untrained)
        names = {"length": length, "position": position, "rho_star": trained, "rho_0": untrained}
        k = np.arange(length + 1)
        assert d.one_position_completion(k, **names) == pytest.approx(d.completion(rho), abs=1e-14)
        assert d.one_position_leak(k, **names) == pytest.approx(d.leak(rho), abs=1e-12)
        assert d.leak(rho).max() >= d.one_position_leak_floor(length, untrained) - 1e-12


@pytest.mark.parametrize("position", range(1, 13))
def test_one_position_survives_prefixes_that_end_before_it(position):
    rho = np.where(d.one_position(12, position) > 0, 0.99, 0.03)
    assert d.safety_depth(rho, 0.05) == position - 1


@pytest.mark.parametrize(
    ("rho", "epsilon", "survived"),
    [
        ([0.5, 0.5, 0.5], 0.125, 0),
        ([0.5, 0.5, 0.5], 0.25, 1),
        ([0.5, 0.5, 0.5], 0.5, 2),
        ([0.5, 0.5, 0.5], 0.1, -1),
        ([0.5, 0.5, 0.5], 1, 3),
        ([1.0, 0, 0], 0, 0),
        ([0, 0, 1.0], 0, 2),
        ([0, 0, 0], 0.5, -1),
    ],
)
def test_known_safety_depths(rho, epsilon, survived):
    assert d.safety_depth(rho, epsilon) == survived


@given(st.integers(1, 12), st.integers(1, 12), inner, st.floats(0, 0.5), st.floats(0.001, 0.9))
def test_the_safety_depth_of_even_positions(length, orbit, rho, rho_0, epsilon):
    length, orbit = max(length, orbit), min(length, orbit)
    each = np.where(np.arange(length) < orbit, rho, rho_0)
    completed = d.completion(each)
    if np.abs(completed / epsilon - 1).min() > 1e-6:  # ties are in the table of known answers
        assert d.uniform_depth(epsilon, length=length, orbit=orbit, rho=rho, rho_0=rho_0) == d.safety_depth(
            each, epsilon
        )


@pytest.mark.parametrize(
    ("epsilon", "length", "orbit", "rho", "rho_0", "survived"),
    [(0.125, 3, 3, 0.5, 0, 0), (0.25, 4, 4, 0.5, 0, 2), (0.1, 3, 3, 0.5, 0, -1), (1, 3, 2, 0.5, 0, 3), (0.01, 5, 4, 1, 0, 3),
     (0.25, 8, 2, 0.5, 0.5, 6), (0.5, 4, 2, 0, 0, -1)],
)  # fmt: skip
def test_known_depths_of_even_positions(epsilon, length, orbit, rho, rho_0, survived):
    assert d.uniform_depth(epsilon, length=length, orbit=orbit, rho=rho, rho_0=rho_0) == survived


# --- schedules --------------------------------------------------------------------------------------------------------


def test_schedules_share_out_one_budget():
    assert d.one_position(4, 3).tolist() == [0, 0, 1, 0]
    assert d.uniform(4, [1, 3]).tolist() == [0.5, 0, 0.5, 0]
    assert d.cyclic(3, 0.5) == pytest.approx(np.array([4, 2, 1]) / 7)
    assert d.cyclic(4, 1, [2, 4]).tolist() == [0, 0.5, 0, 0.5]
    for shares in (d.one_position(6, 2), d.uniform(6), d.cyclic(6, 0.9), d.cyclic(6, 0.3, [1, 5])):
        assert shares.sum() == pytest.approx(1)


@given(st.integers(1, 8), st.floats(0.1, 0.99))
def test_cyclic_shares_are_the_limit_of_taking_turns(length, gamma):
    received = np.zeros(length)
    for t in range(60 * length):
        received[t % length] += gamma**t
    if gamma ** (60 * length) < 1e-6:
        assert d.cyclic(length, gamma) == pytest.approx(received / received.sum(), abs=1e-6)


def test_a_budget_that_one_position_cannot_use_is_wasted():
    rho = d.refusal_probabilities(d.one_position(3, 2), [0.5, 2], 0.03)
    assert rho == pytest.approx(np.array([[0.03, 0.53, 0.03], [0.03, 1, 0.03]]))


@pytest.mark.parametrize(
    ("schedule", "budget", "worst"),
    [
        (d.one_position(12, 1), 2, 9.2),
        (d.one_position(12, 6), 2, 5.4),
        (d.one_position(12, 12), 2, 9.2),
        (d.cyclic(12, 0.98), 2, 3.6),
        (d.uniform(12), 2, 3.8),
        (d.cyclic(12, 0.98), 0.97, 5.9),
        (d.one_position(12, 6), 0.97, 5.4),
    ],
)
def test_known_worst_leaks(schedule, budget, worst):
    assert d.leak(d.refusal_probabilities(schedule, budget, 0.03)).max() == pytest.approx(worst, abs=0.05)


@given(st.integers(2, 15), st.floats(0.005, 0.1), st.floats(0.8, 1))
def test_from_the_covering_budget_on_cyclic_leaks_less_than_every_single_position(length, rho_0, gamma):
    budget = d.covering_budget(length, rho_0, gamma)
    cyclic = d.leak(d.refusal_probabilities(d.cyclic(length, gamma), budget, rho_0)).max()
    singles = [
        d.leak(d.refusal_probabilities(d.one_position(length, p), budget, rho_0)).max() for p in range(1, length + 1)
    ]
    assert cyclic <= min(singles) + 1e-9


# --- recovery, leaky refusals -----------------------------------------------------------------------------------------


@given(st.integers(3, 12), st.integers(1, 4), st.integers(1, 12))
def test_one_position_leaves_some_prefix_without_recovery(length, m, position):
    m, position = min(m, length), min(position, length)
    rho = np.where(d.one_position(length, position) > 0, 1, 0.05)
    worst = d.recovery(rho, m).min()
    if max(position - 1, length - position) >= m:
        assert worst == pytest.approx(1 - 0.95**m)
    else:
        assert worst == 1


@given(profiles, st.integers(1, 9))
def test_recovery_is_read_off_completion(rho, m):
    m = min(m, rho.size)
    got = d.recovery(rho, m)
    assert got == pytest.approx([1 - np.prod(1 - rho[k : k + m]) for k in range(rho.size - m + 1)])
    assert got.min() >= 1 - (1 - rho.min()) ** m - 1e-12


@given(st.lists(st.tuples(probabilities, probabilities), min_size=1, max_size=6))
def test_a_leaking_refusal_follows_its_chain(rates):
    rho, leaking = np.array(rates).T
    harmful, refusing = d.refusing_at_end(rho, leaking)
    law = np.array([[1.0, 0], [0, 1]])
    for r, l in rates:
        law = law @ np.array([[1 - r, r], [l, 1 - l]])
    assert (harmful[0], refusing[0]) == pytest.approx(tuple(law[:, 1]))
    constant = d.depth_chain(rho, leaking[0])
    ends = absorbing.absorption_probabilities(constant)[:, 1]
    harmful, refusing = d.refusing_at_end(rho, leaking[0])
    assert ends == pytest.approx(np.r_[harmful, refusing], abs=1e-12)


@given(st.integers(0, 12), probabilities, probabilities)
def test_the_closed_form_of_a_leaking_refusal(n, rho, leaking):
    expected = d.refusing_at_end(np.full(n, rho), leaking) if n else ([0], [1])
    for start, want in zip(("harmful", "refusal"), expected, strict=True):
        assert d.leaky_refusal(n, rho, leaking, start=start) == pytest.approx(want[0], abs=1e-12)


@pytest.mark.parametrize(
    ("n", "rho", "leaking", "start", "expected"),
    [
        (inf, 0.3, 0.1, "harmful", 0.75),
        (inf, 0.3, 0.1, "refusal", 0.75),
        (inf, 0.3, 0, "harmful", 1),
        (inf, 0, 0, "harmful", 0),
        (inf, 0, 0, "refusal", 1),
        (3, 1, 1, "harmful", 1),
        (4, 1, 1, "harmful", 0),
        (inf, 1, 1, "harmful", np.nan),
        (1, 0.3, 0.1, "refusal", 0.9),
        (0, 0.3, 0.1, "harmful", 0),
    ],
)
def test_known_answers_of_leaking_refusals(n, rho, leaking, start, expected):
    assert d.leaky_refusal(n, rho, leaking, start=start) == pytest.approx(expected, nan_ok=True)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.completion([0.5, 1.5]), r"rho must lie in \[0, 1\], got 1.5"),
        (lambda: d.completion(0.5), "rho must have a last axis of at least one position"),
        (lambda: d.leak([np.nan]), "rho must lie in .* got nan"),
        (lambda: d.safety_depth([0.5], -0.1), "epsilon must lie in .* got -0.1"),
        (lambda: d.recovery([0.5, 0.5], 3), "m must be at most the 2 positions, got 3"),
        (lambda: d.recovery([0.5, 0.5], 0), r"m must lie in \[1, inf\), got 0"),
        (lambda: d.depth_chain([[0.5]]), r"rho must be one-dimensional, got shape \(1, 1\)"),
        (lambda: d.depth_chain([0.5], 2), "leaking must lie in .* got 2"),
        (lambda: d.leaky_refusal(1, 0.5, 0.5, start="both"), "start must be 'harmful' or 'refusal', got 'both'"),
        (lambda: d.one_position(3, 4), "position must be between 1 and 3, got 4"),
        (lambda: d.one_position(0, 1), r"length must lie in \[1, inf\), got 0"),
        (lambda: d.uniform(3, []), "positions must be between 1 and 3, got none"),
        (lambda: d.cyclic(3, 0), r"gamma must lie in \(0, 1\], got 0"),
        (lambda: d.refusal_probabilities([0.5, 0.6], 1, 0), "shares must sum to 1 over the positions, got 1.1"),
        (lambda: d.refusal_probabilities([1.0], -1, 0), "budget must lie in .* got -1"),
        (lambda: d.one_position_leak(4, length=3, position=1, rho_star=1, rho_0=0), "k must be at most length, got 4"),
        (lambda: d.uniform_depth(0.1, length=3, orbit=4, rho=1, rho_0=0), "orbit must be at most length, got 4"),
        (lambda: d.uniform_depth(0, length=3, orbit=3, rho=1, rho_0=0), r"epsilon must lie in \(0, 1\], got 0"),
        (lambda: d.leak_ceiling(0), r"rho_min must lie in \(0, 1\], got 0"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the claim --------------------------------------------------------------------------------------------------------


def test_the_ideal_depth_depends_on_the_criterion(monkeypatch):
    (claim,) = (claim for claim in claims.ledger(1) if claim.id == "depth-ideal")
    assert list(proofs.ideal_positions().values()) == [[12], [1], [6, 7]]
    assert claim.check().verdict == Verdict.CONDITIONAL
    monkeypatch.setattr(proofs, "ideal_positions", lambda: {"one": [3], "two": [3, 4]})
    assert claim.check().verdict == Verdict.REPRODUCED
