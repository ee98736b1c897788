"""Cyclic bias: orbits, orbit sums and counts against exact iteration, known answers, properties."""

import subprocess
import sys
from fractions import Fraction as F
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safetylib.chain import cyclic as c
from safetylib.chain import updates as u

inf = np.inf
settings.register_profile("cyclic", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("cyclic")

gammas = st.floats(0.05, 0.99)
patterns = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any).map(lambda entries: np.array(entries) / 9)
permutations = st.permutations(range(5))
SWAP = {"escape_0": 0.5, "pattern": [1, 0], "alpha": 0.25, "gamma": 0.5}
ORBIT = {"escape_0": 0.5, "pattern": c.one_hot(4), "alpha": 0.3, "gamma": 0.9}


@st.composite
def exact_biases(draw, size=5):
    entries = st.integers(-9, 9).map(lambda numerator: F(numerator, 7))
    return [draw(st.lists(entries, min_size=size, max_size=size)) for _ in range(size)]


# --- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (c.order([1, 2, 0, 4, 3]), 6),
        (c.order(range(7)), 1),
        (c.orbit([1, 2, 0, 4, 3], 1), [1, 2, 0]),
        (c.orbit(c.permutation_matrix([1, 2, 0, 4, 3]), 4), [4, 3]),
        (np.concatenate(c.cycles([2, 1, 0, 3])), [0, 2, 1, 3]),
        ([len(cycle) for cycle in c.cycles([2, 1, 0, 3])], [2, 1, 1]),
        (c.power([1, 2, 0, 4, 3], 10**15 + 1), [2, 0, 1, 4, 3]),
        (c.power([1, 2, 0, 4, 3], -1), [2, 0, 1, 4, 3]),
        (c.whole_orbit([1, 2, 3]), [[1, 2, 3], [3, 1, 2], [2, 3, 1]]),
        (c.cyclic_sum(inf, [1, 0], 0.5), 4 / 3),
        (c.cyclic_sum([0, 1, 2, 3], [1, 0], 0.5), [0, 1, 1, 1.25]),
        (c.cyclic_sum([7, inf], [1, 2], 1), [10, inf]),
        (c.cyclic_sum(inf, [1, -1], 1), 0),
        (c.discounted_mean([1, 0, 0, 0], 0.9), 0.1 / (1 - 0.9**4)),
        (c.discounted_mean([1, 0, 0, 0], 1), 0.25),
        # two refusal states pushed in turn: 1/4, 1/4, 3/16, 3/16, 11/64, ... -> 1/6, and 1/3 for the other
        (c.cyclic_escape(range(6), **SWAP), [1 / 2, 1 / 4, 1 / 4, 3 / 16, 3 / 16, 11 / 64]),
        (c.cyclic_escape(inf, **SWAP), 1 / 6),
        (c.cyclic_escape(inf, **{**SWAP, "pattern": [0, 1]}), 1 / 3),
        (c.cyclic_steps([0.1, 1 / 6, 0.17, 0.1875, 0.2, 0.5], **SWAP), [inf, inf, 7, 3, 3, 0]),
        (c.cyclic_threshold(0.1, escape_0=0.5, pattern=[1, 0], gamma=0.5), 0.3),
        (c.cyclic_steps(0.1, **{**SWAP, "alpha": 0.3}), inf),  # at the threshold: approached, never reached
        (c.cyclic_steps(0.1, **{**SWAP, "alpha": 0.4}), 1),
        (c.cyclic_tuned_alpha(escape_0=0.5, pattern=[1, 0], gamma=0.5), 0.375),
        (c.cyclic_escape([2, 4, 6], **{**SWAP, "alpha": 0.375}), [1 / 8, 1 / 32, 1 / 128]),
        (c.one_cycle_alpha(0.1, escape_0=0.5, pattern=[1, 1], gamma=0.5), 0.4 / 1.5),
        (c.cyclic_escape([0, 5, inf], escape_0=0.5, pattern=[1, 0], alpha=0.01, gamma=1), [0.5, 0.47, 0]),
        (c.cyclic_steps(0.1, escape_0=0.5, pattern=[1, 0], alpha=[0, 0.01, 0.02], gamma=1), [inf, 79, 39]),
        (c.cyclic_steps(0.1, escape_0=0.5, pattern=[0, 0], alpha=1, gamma=[0.5, 1]), [inf, inf]),
        # the bias comes last in its cycle
        (c.cyclic_escape([3, inf], escape_0=0.5, pattern=c.one_hot(4, 3), alpha=0.45, gamma=0.1), [0.5, 0.49954995]),
        # rounding up to whole cycles
        (c.tuned_whole_cycles(1 / 128, escape_0=0.5, length=range(1, 9), gamma=0.5), [6, 6, 6, 8, 10, 6, 7, 8]),
        (c.paper_cyclic_steps(0.1, 0.5, [1, 2, 9]), [2, 3, 5]),
        (c.paper_cyclic_steps(0.025, 0.5, 3), 4),
        (c.paper_cyclic_steps(0.05, 0.1, 4), 2),
        (c.paper_cyclic_steps(0.01, 0.9, 100), 66),
        (c.paper_cyclic_steps(0.25, 0.5, 9), 4),  # ln(1/8)/ln(1/2) = 3 exactly, and T > 2 asks for n = 4
        (c.coverage(4, 0.9), 0.847921),
        (c.coverage([1, 5], 0.3), [1, 5 * 0.3**4 * 0.7 / (1 - 0.3**5)]),
        (c.coverage(1000, 1), 1),
        (c.whole_orbit_steps(0.01, **ORBIT), 16),
        (c.whole_orbit_steps(0.01, **{**ORBIT, "pattern": np.full(4, 0.25)}), 11),
        (c.whole_orbit_steps(0.01, **{**ORBIT, "alpha": 0.2}), inf),
        (c.whole_orbit_escape([3, 4, inf], **ORBIT), [0.5, 0.5 - 0.3 * 0.729, 0]),
        (c.whole_orbit_escape(4, **{**ORBIT, "pattern": [1]}), 0),
    ],
)
def test_known_answers(got, expected):
    assert np.asarray(got, float) == pytest.approx(np.array(expected, float), rel=1e-12, abs=1e-6)


def test_a_permutation_matrix_moves_unit_vectors_as_its_images_say():
    images = [2, 0, 3, 1]
    matrix = c.permutation_matrix(images)
    assert all((matrix @ np.eye(4)[i] == np.eye(4)[images[i]]).all() for i in range(4))
    bias = np.arange(16.0).reshape(4, 4)
    for t in range(5):
        power = np.linalg.matrix_power(matrix, t)
        assert (c.conjugated_bias(bias, matrix, t) == power @ bias @ power.T).all()


# --- exact rationals --------------------------------------------------------------------------------------------------


def exact_sum(pattern, gamma, n):
    return sum((pattern[t % len(pattern)] * gamma**t for t in range(n)), F(0))


PATTERNS = [(F(1),), (F(1), F(0)), (F(0), F(0), F(1)), (F(1, 2), F(1), F(1, 4)), (F(0), F(1, 2), F(0), F(1), F(3, 4))]
DISCOUNTS = [F(1, 10), F(1, 2), F(9, 10), F(10**6 - 1, 10**6), F(1)]


@pytest.mark.parametrize(("pattern", "gamma"), list(product(PATTERNS, DISCOUNTS)))
def test_sums_and_escapes_agree_with_exact_iteration(pattern, gamma):
    n = np.arange(17)
    exact = [exact_sum(pattern, gamma, k) for k in n]
    numbers, rate = [float(d) for d in pattern], float(gamma)
    assert c.cyclic_sum(n, numbers, rate) == pytest.approx([float(e) for e in exact], rel=1e-12)
    for alpha in (F(1, 20), F(1, 2), F(5)):
        got = c.cyclic_escape(n, escape_0=0.7, pattern=numbers, alpha=float(alpha), gamma=rate)
        assert got == pytest.approx([float(max(F(7, 10) - alpha * e, F(0))) for e in exact], rel=1e-11, abs=1e-13)


def test_counts_are_exact_at_ties_and_at_the_threshold():
    """At learning rates for which e_n equals delta exactly for a given n, or in the limit (None)."""
    wrong, ties = [], 0
    for pattern, gamma, n, delta in product(PATTERNS, DISCOUNTS[:2], (1, 2, 3, 4, 7, None), (F(1, 3), F(1, 10))):
        total = exact_sum(pattern, gamma, len(pattern)) / (1 - gamma ** len(pattern))
        spent = total if n is None else exact_sum(pattern, gamma, n)
        alpha = (F(1, 2) - delta) / (spent or 1)
        if alpha.denominator > 10**6:
            continue
        needed = (F(1, 2) - delta) / alpha
        expected = inf if needed >= total else next(k for k in range(99) if exact_sum(pattern, gamma, k) >= needed)
        names = {"escape_0": 0.5, "pattern": [float(d) for d in pattern], "gamma": float(gamma)}
        if c.cyclic_steps(float(delta), **names, alpha=float(alpha)) != expected:
            wrong.append((pattern, gamma, n, delta))
        ties += 1
    assert not wrong and ties > 60


@given(exact_biases(), permutations, st.integers(0, 40))
def test_the_orbit_formula_and_the_trace_hold_exactly(bias, images, n):
    ratio, size = F(2, 3), 5
    total, moved = F(0), list(range(size))
    seen = []
    for t in range(n):
        back = {image: i for i, image in enumerate(moved)}
        entry = bias[back[0]][back[0]]
        seen.append(entry)
        total += ratio**t * entry
        numbers = c.conjugated_bias([[float(x) for x in row] for row in bias], images, t)
        assert numbers[0, 0] == float(entry)
        assert np.trace(numbers) == pytest.approx(float(sum(bias[i][i] for i in range(size))), abs=1e-12)
        moved = [images[i] for i in moved]
    pattern = c.orbit_pattern([[float(x) for x in row] for row in bias], images, 0)
    assert c.cyclic_sum(n, pattern, 2 / 3) == pytest.approx(float(total), abs=1e-12)
    assert seen[: len(pattern)] == pytest.approx(pattern[:n])


# --- properties -------------------------------------------------------------------------------------------------------


@given(exact_biases(), permutations, gammas, st.integers(0, 30))
def test_the_matrix_form_solves_the_stein_equation_and_sums_the_conjugates(bias, images, gamma, n):
    bias = np.array(bias, float)
    matrix = c.permutation_matrix(images)
    limit = c.discounted_bias(inf, bias, images, gamma)
    assert limit == pytest.approx(bias + gamma * matrix @ limit @ matrix.T, abs=1e-9)
    by_adding = sum((gamma**t * c.conjugated_bias(bias, images, t) for t in range(n)), np.zeros((5, 5)))
    assert c.discounted_bias(n, bias, images, gamma) == pytest.approx(by_adding, abs=1e-9)
    for state in range(5):
        assert c.cyclic_sum(n, c.orbit_pattern(bias, images, state), gamma) == pytest.approx(
            by_adding[state, state], abs=1e-9
        )


@given(exact_biases(), permutations)
def test_the_reynolds_average_commutes_with_the_permutation_and_is_the_limit(bias, images):
    bias, matrix = np.array(bias, float), c.permutation_matrix(images)
    average = c.reynolds_average(bias, images)
    assert average @ matrix == pytest.approx(matrix @ average)
    assert average == pytest.approx(
        np.mean([c.conjugated_bias(bias, images, t) for t in range(c.order(images))], axis=0)
    )
    assert 1e-7 * c.discounted_bias(inf, bias, images, 1 - 1e-7) == pytest.approx(average, abs=1e-5)


@given(patterns, st.floats(0.05, 1), st.floats(0.001, 0.9), gammas, st.floats(0.01, 3))
def test_the_count_is_the_first_and_never_means_never(pattern, escape_0, delta, gamma, alpha):
    names = {"escape_0": escape_0, "pattern": pattern, "alpha": alpha, "gamma": gamma}
    floor = c.cyclic_escape(inf, **names)
    assume(abs(floor - delta) > 1e-9)
    n = c.cyclic_steps(delta, **names)
    assert (n == inf) == (floor > delta)
    if n < inf:
        assert c.cyclic_escape(n, **names) <= delta + 1e-12
        assert n == 0 or c.cyclic_escape(n - 1, **names) > delta - 1e-12


@given(patterns, st.floats(0.05, 1), st.floats(0.001, 0.9), gammas)
def test_the_threshold_separates_some_day_from_never_and_one_cycle_from_more(pattern, escape_0, delta, gamma):
    assume(delta < 0.99 * escape_0)
    names = {"escape_0": escape_0, "pattern": pattern, "gamma": gamma}
    alpha = c.cyclic_threshold(delta, **names)
    assert c.cyclic_steps(delta, **names, alpha=alpha * (1 - 1e-6)) == inf
    assert c.cyclic_steps(delta, **names, alpha=alpha * (1 + 1e-6)) < inf
    alpha = c.one_cycle_alpha(delta, **names)
    assert c.cyclic_steps(delta, **names, alpha=alpha * (1 + 1e-9)) <= len(pattern)
    assert c.cyclic_steps(delta, **names, alpha=alpha * (1 - 1e-6)) > len(pattern)


@given(patterns, st.floats(0.001, 0.4), gammas)
def test_at_the_tuned_learning_rate_whole_cycles_are_enough(pattern, delta, gamma):
    names = {"escape_0": 0.5, "pattern": pattern, "gamma": gamma}
    n = c.cyclic_steps(delta * (1 + 1e-9), **names, alpha=c.cyclic_tuned_alpha(**names))
    constant = c.tuned_whole_cycles(delta, escape_0=0.5, length=1, gamma=gamma)
    assert (
        n <= c.tuned_whole_cycles(delta, escape_0=0.5, length=len(pattern), gamma=gamma) <= constant + len(pattern) - 1
    )


@given(patterns, st.floats(0.05, 1), st.floats(0.001, 0.9), gammas, st.floats(1, 3))
def test_the_min_form_holds_with_the_largest_push_first_and_a_large_learning_rate(
    pattern, escape_0, delta, gamma, more
):
    pattern = np.roll(pattern, -np.argmax(pattern))
    names = {"escape_0": escape_0, "pattern": pattern, "gamma": gamma}
    first = min(u.paper_bound(delta, gamma) + 1, len(pattern))
    n = np.ceil(first) + np.arange(3 * len(pattern))
    assert (c.cyclic_escape(n, **names, alpha=more * c.one_cycle_alpha(0, **names)) <= delta + 1e-12).all()


@given(patterns, gammas, st.floats(0.05, 1), st.floats(0.01, 3), st.integers(0, 60))
def test_a_constant_bias_of_the_largest_size_is_never_slower(pattern, gamma, escape_0, alpha, n):
    cyclic = c.cyclic_escape(n, escape_0=escape_0, pattern=pattern, alpha=alpha, gamma=gamma)
    assert u.proportional_escape(n, escape_0=escape_0, bias=pattern.max(), alpha=alpha, gamma=gamma) <= cyclic + 1e-12
    assert c.discounted_mean(pattern, gamma) <= pattern.max() * (1 + 1e-12)
    mean = c.discounted_mean(pattern, gamma)
    assert c.cyclic_sum(inf, pattern, gamma) == pytest.approx(mean * u.discount_sum(inf, gamma))


@given(st.integers(1, 50), st.floats(0.05, 1))
def test_the_coverage_lies_between_the_last_discount_and_one(length, gamma):
    assert gamma ** (length - 1) * (1 - 1e-12) <= c.coverage(length, gamma) <= 1 + 1e-12
    totals = c.cyclic_sum(1000 * length, c.whole_orbit(c.one_hot(length)), gamma)
    assert totals.min() == totals[-1]
    assert totals.min() / totals.mean() >= c.coverage(length, gamma) * (1 - 1e-9)


@given(st.integers(1, 6), st.floats(0.01, 0.4), gammas, st.floats(0.1, 40))
def test_the_whole_orbit_takes_a_cycle_at_least_and_the_stated_number_of_them(length, delta, gamma, total):
    names = {"escape_0": 0.5, "pattern": c.one_hot(length), "alpha": (1 - gamma) * total, "gamma": gamma}
    share = 1 - (0.5 - delta) * (1 - gamma**length) / (names["alpha"] * gamma ** (length - 1))
    assume(abs(share) > 1e-9)
    cycles = np.log(share) / (length * np.log(gamma)) if share > 0 else inf
    assume(cycles == inf or abs(cycles - np.rint(cycles)) > 1e-9)
    n = c.whole_orbit_steps(delta, **names)
    assert n == length * np.ceil(cycles) and n >= length
    assert (names["alpha"] > c.whole_orbit_threshold(delta, escape_0=0.5, pattern=names["pattern"], gamma=gamma)) == (
        n < inf
    )
    assert n >= u.additive_steps(delta, escape_0=0.5, bias=1 / length, alpha=names["alpha"], gamma=gamma)


def test_a_cycle_of_one_is_the_constant_bias():
    gamma, alpha, n = np.array([0.3, 0.9, 1])[:, None], np.array([0.05, 0.5]), np.arange(30)[:, None, None]
    names = {"escape_0": 0.7, "alpha": alpha, "gamma": gamma}
    assert c.cyclic_escape(n, **names, pattern=[2]) == pytest.approx(
        u.proportional_escape(n, **names, bias=2), abs=1e-14
    )
    delta = np.geomspace(1e-3, 0.9, 40)[:, None, None]
    assert (c.cyclic_steps(delta, **names, pattern=[2]) == u.additive_steps(delta, **names, bias=2)).all()


def test_patterns_broadcast_and_nothing_loops_over_updates():
    rng = np.random.default_rng(3)
    pattern, gamma = rng.uniform(size=(7, 1, 50)), 1 - np.geomspace(1e-9, 0.5, 11)
    assert c.cyclic_sum(10**12 + 7, pattern, gamma).shape == (7, 11)
    steps = c.cyclic_steps(1e-9, escape_0=0.7, pattern=pattern, alpha=c.one_cycle_alpha(0, escape_0=0.7, pattern=pattern, gamma=gamma) / 100, gamma=gamma)  # fmt: skip
    assert steps.shape == (7, 11) and (steps[np.isfinite(steps)] > 4000).all() and (steps[:, -1] == inf).all()
    by_row = [c.cyclic_sum(123, pattern[i, 0], g) for i in range(7) for g in gamma]
    assert c.cyclic_sum(123, pattern, gamma).ravel() == pytest.approx(by_row, rel=1e-14)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: c.order([0, 0, 1]), "permutation must hit every state once, got 0 twice"),
        (lambda: c.order([0, 3, 1]), "permutation must hold states below 3, got 3"),
        (lambda: c.order([0, -1]), "permutation .* got -1"),
        (lambda: c.order([0, 0.5]), "permutation must be a whole number, got 0.5"),
        (lambda: c.order("abc"), "permutation must be numeric, got 'abc'"),
        (lambda: c.order([]), r"permutation .* got shape \(0,\)"),
        (lambda: c.order(np.ones((2, 2))), "permutation must have one 1 in each column, got 2 in column 0"),
        (lambda: c.order([[1, 1], [0, 0]]), "permutation must have one 1 in each row, got 2 in row 0"),
        (lambda: c.order(np.eye(2) / 2), "permutation must hold zeros and ones, got 0.5"),
        (lambda: c.order(np.eye(2)[:1]), "permutation must be a square matrix"),
        (lambda: c.orbit([1, 0], 2), "state must be states below 2, got 2"),
        (lambda: c.power([1, 0], 0.5), "t must be a whole number, got 0.5"),
        (lambda: c.conjugated_bias(np.eye(3), [1, 0], 1), "permutation must have as many states as bias, 3, got 2"),
        (lambda: c.conjugated_bias(np.eye(2), [1, 0], -1), "t .* got -1"),
        (lambda: c.conjugated_bias([[inf, 0], [0, 0]], [1, 0], 1), "bias must be finite"),
        (lambda: c.discounted_bias(3, np.eye(2), [1, 0], 1), "gamma .* got 1"),
        (lambda: c.one_hot(3, 3), "offset .* got 3"),
        (lambda: c.one_hot(0), "length .* got 0"),
        (lambda: c.cyclic_sum(1, 5.0, 0.5), "pattern must have a last axis"),
        (lambda: c.cyclic_sum(-1, [1], 0.5), "n .* got -1"),
        (lambda: c.cyclic_sum(1, [np.nan], 0.5), "pattern .* got nan"),
        (lambda: c.cyclic_escape(1, **{**SWAP, "pattern": [1, -0.5]}), r"pattern must lie in \[0, inf\), got -0.5"),
        (lambda: c.cyclic_escape(1, **{**SWAP, "escape_0": 0}), "escape_0 .* got 0"),
        (lambda: c.cyclic_steps(1.5, **SWAP), "delta .* got 1.5"),
        (lambda: c.cyclic_steps(0.1, **{**SWAP, "gamma": 1.5}), "gamma .* got 1.5"),
        (lambda: c.cyclic_steps(0.1, **{**SWAP, "alpha": -1}), "alpha .* got -1"),
        (lambda: c.paper_cyclic_steps(0.1, 0.5, 0), "order .* got 0"),
        (lambda: c.tuned_whole_cycles(0.1, escape_0=0.5, length=2, gamma=1), "gamma .* got 1"),
        (lambda: c.coverage(0, 0.5), "length .* got 0"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_the_module_imports_neither_torch_nor_sympy():
    code = "import sys, safetylib.chain.cyclic; print({'torch', 'sympy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
