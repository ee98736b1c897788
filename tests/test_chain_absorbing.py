"""Absorbing chains: a table of chains with known answers, agreement of dense and sparse, refusals of bad input."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from safetylib.chain import absorbing as ab

settings.register_profile("chain", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("chain")

inf = np.inf


def ruin(size, up=0.5):
    """Gambler's ruin on 0 .. size: both ends absorb."""
    inner = np.full(size - 1, up)
    return sp.diags_array([np.r_[1, np.zeros(size - 1), 1], np.r_[0, inner], np.r_[1 - inner, 0]], offsets=[0, 1, -1])


# A refusal state 0, a harmful state 1 that it may leak to, and a state 2 from which both are reached.
LEAKY = np.array([[0.98, 0.02, 0], [0, 1, 0], [0.5, 0.25, 0.25]])
# 0 and 1 swap for ever and never see 3; 2 goes either way.
TRAP = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0.5, 0, 0, 0.5], [0, 0, 0, 1]])

CHAINS = {
    "fair ruin": (ruin(4).toarray(), 4, [0, 0.25, 0.5, 0.75, 1], [inf, inf, inf, inf, 0]),
    "biased ruin": (ruin(3, 2 / 3).toarray(), 3, [0, 4 / 7, 6 / 7, 1], [inf, inf, inf, 0]),
    "a leak is certain in the end": (LEAKY, 1, [1, 1, 1], [50, 0, 1 / 0.75 + 2 / 3 * 50]),
    "a refusal that need not be reached": (LEAKY, 0, [1, 0, 2 / 3], [0, inf, inf]),
    "a closed class that never arrives": (TRAP, 3, [0, 0, 0.5, 1], [inf, inf, inf, 0]),
    "a periodic class": (TRAP, 0, [1, 1, 0.5, 0], [0, 1, inf, inf]),
    "identity": (np.eye(2), 0, [1, 0], [0, inf]),
    "one state": (np.eye(1), 0, [1], [0]),
}


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array, sp.coo_matrix], ids=["dense", "csr", "coo"])
@pytest.mark.parametrize("name", CHAINS)
def test_known_chains(name, convert):
    matrix, target, probabilities, steps = CHAINS[name]
    assert ab.hitting_probabilities(convert(matrix), target) == pytest.approx(probabilities)
    assert ab.expected_steps(convert(matrix), target) == pytest.approx(steps)


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
def test_the_fundamental_matrix_counts_visits(convert):
    visits = ab.fundamental_matrix(convert(ruin(3).toarray()))
    assert visits == pytest.approx(np.array([[4, 2], [2, 4]]) / 3)
    law = ab.absorption_probabilities(convert(ruin(3).toarray()))
    assert law == pytest.approx(np.array([[3, 0], [2, 1], [1, 2], [0, 3]]) / 3)


def test_expected_steps_of_the_fair_game():
    steps = ab.expected_steps(ruin(10).tocsr(), [0, 10])
    assert steps == pytest.approx([k * (10 - k) for k in range(11)])


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
def test_a_tiny_escape_probability_is_not_rounded_away(convert):
    for tiny in (1e-12, 1e-20, 1e-200):
        matrix = convert(np.array([[1.0, tiny, tiny], [0, 1, 0], [0, 0, 1]]))
        assert ab.hitting_probabilities(matrix, 1) == pytest.approx([0.5, 1, 0])
        assert ab.expected_steps(matrix, [1, 2])[0] == pytest.approx(1 / (2 * tiny))


def test_a_million_states():
    size = 1_000_000
    probabilities = ab.hitting_probabilities(ruin(size - 1).tocsr(), size - 1)
    assert probabilities[:: size // 4] == pytest.approx(np.arange(0, size, size // 4) / (size - 1), abs=1e-5)


def test_a_million_states_on_a_tree_whose_numbers_are_shuffled():
    """Up with probability 1/2, down to each child with 1/4; the root and the leaves absorb. The depth is a fair game."""
    levels = 20
    size = 2**levels - 1
    depth = np.floor(np.log2(np.arange(1, size + 1))).astype(int)
    inner = np.flatnonzero((depth > 0) & (depth < levels - 1))
    ends = np.flatnonzero((depth == 0) | (depth == levels - 1))
    rows = np.concatenate([inner, inner, inner, ends])
    columns = np.concatenate([(inner - 1) // 2, 2 * inner + 1, 2 * inner + 2, ends])
    weights = np.repeat([0.5, 0.25, 0.25, 1], [inner.size, inner.size, inner.size, ends.size])
    name = np.random.default_rng(5).permutation(size)
    matrix = sp.csr_array((weights, (name[rows], name[columns])), shape=(size, size))
    up = ab.hitting_probabilities(matrix, name[0])[name]
    assert up == pytest.approx(1 - depth / (levels - 1), abs=1e-10)


@st.composite
def chains(draw):
    size = draw(st.integers(2, 7))
    weights = draw(st.lists(st.integers(0, 3), min_size=size * size, max_size=size * size))
    weights = np.array(weights, float).reshape(size, size)
    weights[np.arange(size), np.arange(size)] += weights.sum(axis=1) == 0
    return weights / weights.sum(axis=1, keepdims=True)


@given(chains())
def test_hitting_probabilities_are_the_least_solution(matrix):
    got = ab.hitting_probabilities(matrix, 0)
    arrived = np.linalg.matrix_power(np.vstack([np.eye(len(matrix))[:1], matrix[1:]]), 2**14)[:, 0]
    assert got == pytest.approx(arrived, abs=1e-7)
    assert ab.hitting_probabilities(sp.csr_array(matrix), 0) == pytest.approx(got, abs=1e-12)
    assert ab.expected_steps(sp.csr_array(matrix), 0) == pytest.approx(ab.expected_steps(matrix, 0))


@given(chains(), st.randoms())
def test_renaming_the_states_renames_the_answer(matrix, random):
    order = list(range(len(matrix)))
    random.shuffle(order)
    renamed = ab.hitting_probabilities(matrix[np.ix_(order, order)], order.index(0))
    assert renamed == pytest.approx(ab.hitting_probabilities(matrix, 0)[order], abs=1e-12)


@given(chains(), st.floats(0, 0.99))
def test_for_a_distribution_the_first_condition_implies_the_second(matrix, delta):
    gap = ab.absorption_gap(matrix, 0, range(1, len(matrix)))
    assert gap.leak <= gap.escape + 1e-12
    assert ab.is_delta_absorbing(matrix, 0, range(1, len(matrix)), delta) == (max(gap) <= delta)


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("row", "gap"),
    [
        ([0.98, 0.01, 0.01], (0.02, 0.01)),
        ([1.0, 0.4, -0.4], (0, 0.4)),  # not a distribution: escape-free, and yet a leak
        ([1.3, 0, -0.3], (0.3, 0)),
        ([1, 0, 0], (0, 0)),
    ],
)
def test_both_conditions_are_read_off_the_matrix_as_it_is(row, gap, convert):
    matrix = convert(np.array([row, [0, 1, 0], [0, 0, 1]], dtype=float))
    assert ab.absorption_gap(matrix, 0, [1]) == pytest.approx(gap)
    assert ab.is_delta_absorbing(matrix, 0, [1], 0.05) == (max(gap) <= 0.05)


def test_absorbing_states_are_those_that_are_never_left():
    assert ab.absorbing_states(LEAKY).tolist() == [1]
    assert ab.absorbing_states(sp.csr_array(TRAP)).tolist() == [3]
    assert ab.absorbing_states(np.array([[1.0, 1e-30], [0, 1]])).tolist() == [1]


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.6], [0, 1]], "matrix must have rows that sum to 1, got row 0 with sum 1.1"),
        ([[0.5, 0.5], [-0.1, 1.1]], "matrix must be non-negative, got an entry -0.1"),
        ([[np.nan, 1], [0, 1]], "matrix must be finite, got an entry nan"),
        ([[np.inf, 0], [0, 1]], "matrix must be finite, got an entry inf"),
        ([[0.5, 0.25, 0.25], [0, 1, 0]], r"matrix must be a square matrix, got shape \(2, 3\)"),
    ],
)
def test_a_bad_matrix_is_refused_with_its_fault(matrix, message, convert):
    with pytest.raises(ValueError, match=message):
        ab.hitting_probabilities(convert(matrix), 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ab.hitting_probabilities([1.0], 0), r"matrix must be a square matrix, got shape \(1,\)"),
        (lambda: ab.hitting_probabilities([["a"]], 0), "matrix must be a numeric matrix"),
        (lambda: ab.hitting_probabilities(LEAKY, 3), "targets must be states below 3, got 3"),
        (lambda: ab.hitting_probabilities(LEAKY, -1), "targets .* got -1"),
        (lambda: ab.hitting_probabilities(LEAKY, []), "targets must hold a state"),
        (lambda: ab.fundamental_matrix([[0, 1.0], [1, 0]]), "targets must hold a state, got none"),
        (lambda: ab.fundamental_matrix(TRAP), "targets must be reachable from every state, got state 0"),
        (lambda: ab.absorption_gap(LEAKY, 0, [0, 1]), "harmful must not contain the refusal state, got 0"),
        (lambda: ab.is_delta_absorbing(LEAKY, 0, [1], 1.5), "delta .* got 1.5"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
