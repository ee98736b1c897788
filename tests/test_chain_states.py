"""The chain of a language model on its windows, and lumping: known answers, brute force, properties, refusals."""

from itertools import product, repeat

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from safetylib import claims
from safetylib.chain import absorbing
from safetylib.chain import states as s
from safetylib.claims import Verdict
from safetylib.proofs import states as proofs

settings.register_profile("chain", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("chain")

seeds = st.integers(0, 2**32 - 1)


def model(vocabulary, context, seed=0, end=None):
    """Windows, next-token law and exact chain of a random softmax model."""
    windows = s.Windows(vocabulary, context)
    logits = np.random.default_rng(seed).normal(size=(len(windows), vocabulary))
    law = softmax(2 * logits, axis=1)
    return windows, law, s.window_chain(windows, law, end=end)


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "context", "count"),
    [(1, 1, 1), (1, 7, 7), (2, 1, 2), (2, 3, 14), (3, 3, 39), (5, 4, 780), (10, 6, 1111110), (2, 70, 2**71 - 2)],
)
def test_the_number_of_windows(vocabulary, context, count):
    assert s.count_states(vocabulary, context) == count
    assert s.log10_states(vocabulary, context) == pytest.approx(np.log10(float(count)), rel=1e-14)
    assert s.log10_density(vocabulary, context) == pytest.approx(np.log10(vocabulary / float(count)), abs=1e-12)


def test_a_real_model_has_more_states_than_can_be_listed():
    assert s.log10_states(50257, 1024) == pytest.approx(4814.03, abs=0.01)
    assert len(str(s.count_states(50257, 100))) == int(s.log10_states(50257, 100)) + 1
    assert s.log10_states([2, 50257], [3, 1024]).shape == (2,)


@pytest.mark.parametrize(("vocabulary", "context"), [(1, 3), (2, 1), (2, 4), (3, 3), (4, 2)])
def test_windows_are_numbered_as_they_are_listed(vocabulary, context):
    windows = s.Windows(vocabulary, context)
    listed = [w for length in range(1, context + 1) for w in product(range(vocabulary), repeat=length)]
    assert [windows.tokens(i) for i in range(len(windows))] == listed
    assert [windows.index(w) for w in listed] == list(range(len(windows)))
    for state, follow in enumerate(windows.successors()):
        assert [listed[i] for i in follow] == [(*listed[state], y)[-context:] for y in range(vocabulary)]
    assert windows.lengths().tolist() == [len(w) for w in listed]
    assert windows.last().tolist() == [w[-1] for w in listed]
    assert windows.index([*range(vocabulary), *listed[-1]]) == len(listed) - 1, "older tokens are forgotten"


# --- the exact chain --------------------------------------------------------------------------------------------------


def test_the_chain_follows_the_model_token_by_token():
    """The probability of a text is the product of its conditionals, and the sum over texts is the law of the chain."""
    windows, law, matrix = model(3, 2, seed=1)
    expected = np.zeros(len(windows))
    for text in product(range(3), repeat=4):
        probability, tokens = 1.0, (2,)
        for token in text:
            probability *= law[windows.index(tokens), token]
            tokens = (*tokens, token)
        expected[windows.index(tokens)] += probability
    start = s.point_mass(windows.index([2]), len(windows))
    assert s.laws(start, repeat(matrix, 4))[-1] == pytest.approx(expected, abs=1e-15)


def test_the_density_is_that_of_the_formula():
    windows, _, matrix = model(3, 4)
    assert matrix.nnz == 3 * len(windows)
    assert matrix.nnz / len(windows) ** 2 == pytest.approx((3 - 1) / (3**4 - 1))
    assert np.log10(matrix.nnz / len(windows) ** 2) == pytest.approx(s.log10_density(3, 4))


@pytest.mark.parametrize(("vocabulary", "context"), [(2, 1), (2, 3), (3, 2), (4, 2)])
def test_under_a_softmax_the_full_windows_are_one_class_and_reached_in_k_steps(vocabulary, context):
    windows, law, matrix = model(vocabulary, context)
    full = np.flatnonzero(windows.lengths() == context)
    (only,) = s.closed_classes(matrix)
    assert only.tolist() == full.tolist()
    assert np.linalg.matrix_power(matrix.toarray(), context)[:, full].min() >= law.min() ** context > 0
    assert absorbing.absorbing_states(matrix).size == 0


def test_an_end_token_makes_each_ended_window_absorbing_and_everything_else_transient():
    windows, _, matrix = model(3, 3, end=1)
    ended = np.flatnonzero(windows.last() == 1)
    assert ended.size == 1 + 3 + 9
    assert absorbing.absorbing_states(matrix).tolist() == ended.tolist()
    assert [c.tolist() for c in s.closed_classes(matrix)] == [[state] for state in ended]
    assert absorbing.hitting_probabilities(matrix, ended) == pytest.approx(1)


def test_zeros_of_truncated_sampling_can_close_a_class():
    windows = s.Windows(2, 1)
    (closed,) = s.closed_classes(s.window_chain(windows, [[1, 0], [0.5, 0.5]]))
    assert closed.tolist() == [0]


def test_closed_classes_of_a_chain_with_two():
    matrix = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.2, 0, 0.3, 0.5], [0, 0, 0, 1]])
    assert [c.tolist() for c in s.closed_classes(matrix)] == [[0, 1], [3]]


# --- lumping ----------------------------------------------------------------------------------------------------------


@st.composite
def lumpable(draw):
    """A chain built from its lumped chain: each row spreads its block's mass in its own way."""
    rng = np.random.default_rng(draw(seeds))
    count = draw(st.integers(1, 4))
    blocks = np.r_[np.arange(count), rng.integers(0, count, draw(st.integers(0, 5)))]
    lumped = rng.dirichlet(np.ones(count), count)
    weights = rng.random((blocks.size, blocks.size)) + 0.01
    share = weights / (weights @ np.eye(count)[blocks])[:, blocks]
    return lumped[blocks][:, blocks] * share, blocks, lumped


@given(lumpable(), seeds)
def test_a_lumpable_chain_is_lumped_without_error(case, seed):
    matrix, blocks, lumped = case
    start = np.random.default_rng(seed).dirichlet(np.ones(blocks.size))
    indicator = np.eye(len(lumped))[blocks]
    assert s.is_lumpable(matrix, blocks) and s.is_lumpable(sp.csr_array(matrix), blocks)
    assert s.lump(matrix, blocks, weights=start) == pytest.approx(lumped)
    assert s.lumping_defects(matrix, blocks, lumped) == pytest.approx(0, abs=1e-12)
    exact, predicted = s.laws(start, repeat(matrix, 5)), s.laws(start @ indicator, repeat(lumped, 5))
    assert exact @ indicator == pytest.approx(predicted)
    once = s.stays_within(start, repeat(matrix, 3), np.flatnonzero(blocks == 0))
    assert once == pytest.approx(s.stays_within(start @ indicator, repeat(lumped, 3), 0))


@given(lumpable(), seeds, st.floats(0, 0.5))
def test_the_error_of_lumping_is_bounded(case, seed, share):
    matrix, blocks, _ = case
    rng = np.random.default_rng(seed)
    matrix = (1 - share) * matrix + share * rng.dirichlet(np.ones(blocks.size), blocks.size)
    start = rng.dirichlet(np.ones(blocks.size))
    lumped = s.lump(matrix, blocks, weights=rng.random(blocks.size) + 0.1)
    indicator = np.eye(len(lumped))[blocks]
    error = np.abs(s.laws(start, repeat(matrix, 8)) @ indicator - s.laws(start @ indicator, repeat(lumped, 8)))
    defect = s.lumping_defects(matrix, blocks, lumped).max()
    bound = s.lumped_law_bound(np.arange(9), defect, s.dobrushin_coefficient(lumped))
    assert (error.sum(axis=1) <= bound + 1e-12).all()


@given(lumpable(), seeds)
def test_the_error_of_a_hitting_probability_is_bounded(case, seed):
    """Two blocks more, hit and missed, are absorbing; the rest leaks into both, unevenly."""
    inner, blocks, _ = case
    size, count = len(inner), blocks.max() + 1
    leaving = np.random.default_rng(seed).uniform(0.01, 0.4, (size, 2))
    matrix = np.eye(size + 2)
    matrix[:size] = np.c_[(1 - leaving.sum(axis=1, keepdims=True)) * inner, leaving]
    blocks = np.r_[blocks, count, count + 1]
    lumped = s.lump(matrix, blocks)
    error = np.abs(
        absorbing.hitting_probabilities(matrix, size) - absorbing.hitting_probabilities(lumped, count)[blocks]
    )
    assert (error <= s.hitting_error_bound(matrix, blocks, lumped, [count, count + 1]) + 1e-12).all()


@pytest.mark.parametrize(
    ("n", "defect", "dobrushin", "bound"),
    [(0, 1, 0.5, 0), (3, 0.1, 1, 0.3), (3, 0.1, 0, 0.1), (2, 0.1, 0.5, 0.15), (np.inf, 0.1, 0.5, 0.2),
     (np.inf, 0, 1, 0), (np.inf, 0.1, 1, 2), (100, 0.1, 1, 2)],
)  # fmt: skip
def test_the_bound_on_the_law(n, defect, dobrushin, bound):
    assert s.lumped_law_bound(n, defect, dobrushin) == pytest.approx(bound)


def test_the_dobrushin_coefficient():
    assert s.dobrushin_coefficient(np.eye(2)) == 1
    assert s.dobrushin_coefficient([[0.3, 0.7], [0.3, 0.7]]) == 0
    assert s.dobrushin_coefficient(sp.csr_array([[0.5, 0.5, 0], [0.2, 0.5, 0.3], [0, 1, 0]])) == pytest.approx(0.5)


# --- positions --------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 4))
def test_the_position_indexed_chain_has_every_law_right(seed, count):
    rng = np.random.default_rng(seed)
    matrix, start = rng.dirichlet(np.full(6, 0.3), 6), rng.dirichlet(np.full(6, 0.3))
    blocks = np.r_[np.arange(count), rng.integers(0, count, 6 - count)]
    indicator = np.eye(count)[blocks]
    chain = s.position_lumped(sp.csr_array(matrix), blocks, start, 6)
    assert s.laws(start @ indicator, chain) == pytest.approx(s.laws(start, repeat(matrix, 6)) @ indicator, abs=1e-12)


def test_three_states_show_that_a_forced_prefix_breaks_it():
    matrix, blocks, start = np.array([[0, 1.0, 0], [0, 0, 1], [0, 0, 1]]), [0, 0, 1], [1.0, 0, 0]
    chain = s.position_lumped(matrix, blocks, start, 3)
    assert chain[0, 0].tolist() == [1, 0] and chain[1, 0].tolist() == [0, 1]
    assert np.isnan(chain[0, 1]).all(), "nothing is known about a block that is not visited"
    assert s.laws([1, 0], chain).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    forced = s.point_mass(1, 3)
    assert s.stays_within(forced, [matrix], [0, 1]) == 0, "set into b, the chain refuses"
    assert s.stays_within([1, 0], chain[:1], 0) == 1, "and is predicted not to"


def test_events_at_several_times_are_not_predicted():
    matrix, blocks, start = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]), [0, 0, 1], [0.5, 0.5, 0]
    chain = s.position_lumped(matrix, blocks, start, 3)
    assert s.stays_within(start, repeat(matrix, 3), [0, 1]) == 0.5
    assert s.stays_within([1, 0], chain, 0) == 0.25


def test_a_chain_that_comes_where_nothing_is_known_says_so():
    chain = s.position_lumped(np.eye(2), [0, 1], [1.0, 0], 2)
    with pytest.raises(ValueError, match="transitions must be defined where the chain is, got nan in row 1 at step 0"):
        s.laws([0, 1.0], chain)


def test_staying_is_the_complement_of_hitting():
    _, _, matrix = model(2, 3, end=0)
    start = s.point_mass(1, matrix.shape[0])
    ended = absorbing.absorbing_states(matrix)
    alive = np.setdiff1d(np.arange(matrix.shape[0]), ended)
    for n in (0, 1, 5):
        ends = s.laws(start, repeat(matrix, n))[-1][ended].sum()
        assert s.stays_within(start, repeat(matrix, n), alive) == pytest.approx(1 - ends)


# --- refusals ---------------------------------------------------------------------------------------------------------

small = s.Windows(2, 2)
flat = np.full((6, 2), 0.5)
two = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.count_states(0, 3), r"vocabulary must lie in \[1, inf\), got 0"),
        (lambda: s.count_states(3, 1.5), "context must be a whole number, got 1.5"),
        (lambda: s.Windows(50257, 1024), "context must leave at most ten million windows to list, got 1024"),
        (lambda: small.index([]), "tokens must be a sequence of at least one token"),
        (lambda: small.index([0, 2]), "tokens must be below 2, got 2"),
        (lambda: small.tokens(6), "state must be states below 6, got 6"),
        (lambda: s.window_chain(small, flat[:5]), r"next_token must have shape \(6, 2\).* got \(5, 2\)"),
        (lambda: s.window_chain(small, flat * 1.1), "next_token must have rows that sum to 1, got row 0 with sum 1.1"),
        (lambda: s.window_chain(small, flat - 1), r"next_token must lie in \[0, inf\), got -0.5"),
        (lambda: s.window_chain(small, flat, end=2), "end must be states below 2, got 2"),
        (lambda: s.lump(two, [0, 2]), "blocks must be numbered without gaps, got no state in block 1"),
        (lambda: s.lump(two, [0]), r"blocks must have shape \(2,\), one block a state, got \(1,\)"),
        (lambda: s.lump(two, [0, 1], weights=[1, 0]), "weights must be positive .* block 1"),
        (lambda: s.lump(two, [0, 1], weights=[1, np.nan]), "weights must lie in .* got nan"),
        (lambda: s.lumping_defects(two, [0, 0], two), r"lumped must have one row a block, 1, got shape \(2, 2\)"),
        (lambda: s.lumped_law_bound(-1, 0.1, 0.5), "n must lie in"),
        (lambda: s.lumped_law_bound(1, 0.1, 1.5), r"dobrushin must lie in \[0, 1\], got 1.5"),
        (lambda: s.laws([0.5, 0.6], []), "start must be a distribution, got shape .* with sum 1.1"),
        (lambda: s.laws([1.0], [two]), r"transitions must have shape \(1, 1\), got \(2, 2\) at step 0"),
        (lambda: s.stays_within([1.0, 0], [], 2), "states must be states below 2, got 2"),
        (lambda: s.position_lumped(two, [0, 1], [1.0], 2), "start must have 2 entries, got 1"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the claims -------------------------------------------------------------------------------------------------------

CLAIMS = {claim.id: claim for claim in claims.ledger(1)}


@pytest.mark.parametrize(
    ("id", "verdict"),
    [("mc-finite", Verdict.CONDITIONAL), ("mc-absorbing", Verdict.CONDITIONAL), ("mc-lumped", Verdict.REFUTED)],
)
def test_the_verdicts_on_the_chain(id, verdict):
    assert CLAIMS[id].check().verdict == verdict


@pytest.mark.parametrize(
    ("id", "name", "replacement", "verdict"),
    [
        ("mc-finite", "counting_rule", proofs.window_rule, Verdict.REPRODUCED),
        ("mc-finite", "window_rule", lambda text: sum(text), Verdict.REFUTED),
        ("mc-lumped", "forced_prefix_counterexample", lambda: (1, 1, 0), Verdict.REPRODUCED),
        ("mc-lumped", "forced_prefix_counterexample", lambda: (1, 0, 1), Verdict.UNDECIDED),
    ],
)
def test_a_verdict_falls_with_what_carries_it(monkeypatch, id, name, replacement, verdict):
    monkeypatch.setattr(proofs, name, replacement)
    assert CLAIMS[id].check().verdict == verdict


def test_absorption_is_reproduced_where_truncation_closes_a_class(monkeypatch):
    def greedy(logits, axis):
        return np.eye(3)[np.argmax(logits, axis=axis)]

    monkeypatch.setattr(proofs, "normalised_exponential", greedy)
    assert CLAIMS["mc-absorbing"].check().verdict == Verdict.REPRODUCED
