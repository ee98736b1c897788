"""The update rules: closed forms against exact iteration, counts against brute force, known answers, properties."""

import subprocess
import sys
from fractions import Fraction as F
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from safetylib.chain import updates as u

inf = np.inf
settings.register_profile("chain", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("chain")

escapes = st.floats(0.01, 0.99)
gammas = st.floats(0.05, 0.99)
budgets = st.floats(0.05, 3)
rules = {"escape_0": 0.7, "bias": 1.0, "gamma": 0.9}
tuned = {**rules, "alpha": u.tuned_alpha(**rules)}


@st.composite
def matrices(draw, size=4):
    weights = draw(st.lists(st.integers(1, 20), min_size=size * size, max_size=size * size))
    weights = np.array(weights, float).reshape(size, size)
    return weights / weights.sum(axis=1, keepdims=True)


@st.composite
def biases(draw, size=4):
    """Zero row sums, positive on the diagonal, nowhere positive beside it."""
    weights = np.array(draw(st.lists(st.integers(0, 9), min_size=size * size, max_size=size * size)), float)
    weights = weights.reshape(size, size)
    weights[:, 0] += weights.sum(axis=1) == 0
    np.fill_diagonal(weights, 0)
    weights[0, 1] += weights[0].sum() == 0
    bias = -weights
    np.fill_diagonal(bias, weights.sum(axis=1))
    return bias / 9


# --- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (u.additive_steps(0.01, **tuned), 41),
        (u.paper_steps(0.01, 0.9), 66),
        (u.additive_steps(0.1, escape_0=0.7, bias=1, alpha=0.007, gamma=0.99), 194),
        (u.paper_steps(0.1, 0.99), 688),
        (u.additive_steps(0.1, escape_0=0.7, bias=1, alpha=0.0007, gamma=0.999), 1945),
        (u.paper_steps(0.1, 0.999), 9206),
        (u.paper_steps(0.01, 1 - 1e-2), 917),
        (u.paper_steps(0.01, 1 - 1e-4), 138_149),
        (u.paper_steps(0.01, 1 - 1e-6), 18_420_672),
        (u.paper_steps(0.01, 1), inf),
        (u.additive_steps(0.01, escape_0=0.7, bias=1, alpha=0.02, gamma=1), 35),
        (u.additive_steps(0.01, escape_0=0.7, bias=1, alpha=0.02, gamma=1 - 1e-2), 43),
        (u.additive_steps(0.01, escape_0=0.7, bias=1, alpha=0.02, gamma=1 - 1e-6), 35),
        (u.additive_steps(0.8, **tuned), 0),
        # at the threshold itself: approached, never reached
        (u.additive_steps(0.01, escape_0=0.7, bias=1, alpha=0.069, gamma=0.9), inf),
        (u.additive_steps(0.1, escape_0=0.5, bias=1, alpha=0.2, gamma=0.5), inf),
        # ties: e_n equals delta exactly, in fractions and in decimals
        (u.additive_steps(0.125, escape_0=0.5, bias=1, alpha=0.25, gamma=0.5), 2),
        (u.additive_steps(0.005, escape_0=0.5, bias=1, alpha=0.45, gamma=0.1), 2),
        (u.additive_steps(1 / 27, escape_0=1, bias=1, alpha=2 / 3, gamma=1 / 3), 3),
        (u.additive_steps(0.09, escape_0=1, bias=1, alpha=0.7, gamma=0.3), 2),
        (u.additive_steps(0.1, escape_0=0.7, bias=1, alpha=0.2, gamma=1), 3),
        (u.additive_steps(1e-9, escape_0=0.7, bias=1, alpha=0.07, gamma=0.9), 194),
        (u.steps_to_sum(2, 0.5), inf),
        (u.steps_to_sum(1.75, 0.5), 3),
        (u.harmonic_steps(0.01, 0.5), 98),
        (u.response_delta(0.05, 100) * 1e6, pytest.approx(512.8, abs=0.1)),
        (u.additive_steps(u.response_delta(0.05, 100), **tuned), 69),
        (u.diagonal_escape(inf, **tuned), pytest.approx(0.352, abs=5e-4)),
        (u.diagonal_escape(inf, **{**tuned, "alpha": 1e8}, upper=True), pytest.approx(0.0042, abs=5e-5)),
        (u.diagonal_escape(inf, **{**tuned, "alpha": 1e32}, upper=True), pytest.approx(0.0013, abs=5e-5)),
        (u.softmax_escape(inf, escape_0=0.7, gap=1, alpha=0.07, gamma=0.9), pytest.approx(0.537, abs=5e-4)),
        (u.neutral_floor(0.7, 4 / 7), pytest.approx(0.268, abs=5e-4)),
        (u.mixing_steps(0.125, escape_0=0.5, alpha=0.5, gamma=1), 2),
        (u.paper_kappa(0.01, escape_0=0.7, gamma=0.9), pytest.approx((0.98670, 1.01429), abs=5e-6)),
    ],
)
def test_known_answers(got, expected):
    assert got == expected


def test_without_clipping_a_large_learning_rate_can_jump_over_the_window():
    parameters = {"escape_0": 0.5, "bias": 1, "alpha": 0.75, "gamma": 0.5}
    assert u.additive_escape([0, 1, 2, 3], **parameters).tolist() == [1 / 2, -1 / 4, -5 / 8, -13 / 16]
    assert u.additive_window(0.05, **parameters) == (inf, -inf)
    assert u.additive_window(0.05, **{**parameters, "alpha": 0.25}) == (4, inf)
    assert u.additive_window(0.25, **{**parameters, "alpha": 0.5}) == (1, 2)


def test_at_the_papers_count_a_slightly_small_learning_rate_fails_for_ever():
    parameters = {**rules, "alpha": 0.98 * tuned["alpha"]}
    assert u.additive_escape(u.paper_steps(0.01, 0.9), **parameters) == pytest.approx(0.0147, abs=1e-4)
    assert u.additive_steps(0.01, **parameters) == inf


def test_a_tuned_learning_rate_stalls_where_neutral_states_are_left_alone():
    matrix = np.array([[0.3, 0.4, 0.3], [0, 1, 0], [0, 0, 1]])
    bias = np.array([[1.0, 0, -1], [0, 0, 0], [0, 0, 0]])
    tuned_steps = {"alpha": 0.07, "gamma": 0.9, "n": 400}
    *_, unprojected = u.iterate(lambda q, s: u.additive_step(q, bias, s), matrix, **tuned_steps)
    *_, algorithm = u.iterate(lambda q, s: u.projected_step(q, bias, s), matrix, **tuned_steps)
    assert unprojected[0] == pytest.approx([1, 0.4, -0.4])
    assert 1 - algorithm[0, 0] == pytest.approx(0.269, abs=5e-4)
    assert 1 - algorithm[0, 0] >= u.neutral_floor(0.7, 4 / 7)


@pytest.mark.filterwarnings("error")
def test_nothing_is_learned_at_a_learning_rate_of_zero():
    for n in (0, 5, inf):
        for escape, _, names in COUNTS.values():
            assert escape(n, **names, escape_0=0.5, alpha=0, gamma=1) == 0.5
    for _, steps, names in COUNTS.values():
        assert steps(0.1, **names, escape_0=0.5, alpha=0, gamma=1) == inf


# --- exact rationals --------------------------------------------------------------------------------------------------


def exact_additive(e0, budget, gamma, n):
    for t in range(n):
        e0 -= budget * gamma**t
    return e0


def exact_diagonal(e, budget, gamma, n, upper):
    for t in range(n):
        gain = budget * gamma**t
        e = e / (1 + (min(gain, e) if upper else gain))
    return e


def exact_mixing(e, alpha, gamma, n):
    for t in range(n):
        e *= 1 - alpha * gamma**t
    return e


FRACTIONS = [F(1, 10), F(1, 2), F(9, 10)]


@pytest.mark.parametrize(
    ("e0", "gamma", "alpha"),
    list(product([*FRACTIONS, F(1)], [*FRACTIONS, F(10**9 - 1, 10**9), F(1)], [F(1, 20), F(1, 2), F(5)])),
)
def test_closed_forms_agree_with_exact_iteration(e0, gamma, alpha):
    bias = F(3, 2)
    names = {"escape_0": float(e0), "bias": float(bias), "alpha": float(alpha), "gamma": float(gamma)}
    for n in (0, 1, 2, 5, 13):
        for got, exact in [
            (u.additive_escape(n, **names), exact_additive(e0, alpha * bias, gamma, n)),
            (u.diagonal_escape(n, **names), exact_diagonal(e0, alpha * bias, gamma, n, upper=False)),
            (u.diagonal_escape(n, **names, upper=True), exact_diagonal(e0, alpha * bias, gamma, n, upper=True)),
        ]:
            assert got == pytest.approx(float(exact), rel=1e-12, abs=1e-13)
        if alpha <= 1:
            got = u.mixing_escape(n, escape_0=float(e0), alpha=float(alpha), gamma=float(gamma))
            assert got == pytest.approx(float(exact_mixing(e0, alpha, gamma, n)), rel=1e-12)


def test_the_additive_count_is_exact_on_a_grid_of_rationals():
    wrong = []
    for e0, gamma, delta, kappa in product(
        [F(p, 10) for p in (1, 5, 7, 10)], [F(p, 20) for p in (1, 10, 17, 19)],
        [F(1, q) for q in (2, 10, 16, 100, 1000)], [F(p, 20) for p in (10, 18, 19, 20, 21, 40)],
    ):  # fmt: skip
        alpha = kappa * (1 - gamma) * e0
        if delta < e0 and e0 * (1 - kappa) >= delta:
            expected = inf
        else:
            expected = next(n for n in range(10_000) if e0 * (1 - kappa * (1 - gamma**n)) <= delta)
        names = {"escape_0": float(e0), "bias": 1, "alpha": float(alpha), "gamma": float(gamma)}
        if u.additive_steps(float(delta), **names) != expected:
            wrong.append((e0, gamma, delta, kappa))
    assert not wrong


def test_the_clip_at_one_holds_through_all_three_stretches():
    rng = np.random.default_rng(2)
    n = np.array([0, 1, 2, 3, 10, 50, 300, 1000])
    for _ in range(60):
        e0, gamma, alpha = rng.uniform(0.01, 1), 1 - 10 ** rng.uniform(-4, -0.05), 10 ** rng.uniform(-4, 6)
        path = [e0]
        for t in range(n[-1]):
            path.append(path[-1] / (1 + min(alpha * gamma**t, path[-1])))
        got = u.diagonal_escape(n, escape_0=e0, bias=1, alpha=alpha, gamma=gamma, upper=True)
        assert got == pytest.approx(np.array(path)[n], rel=1e-10)


@pytest.mark.parametrize("x", [-1, -0.999, -0.3, -1e-6, 1e-6, 0.4, 1, 50, 1e8])
@pytest.mark.parametrize("gap", [0.5, 0.1, 0.02, 1e-3, 1e-5])
def test_the_long_product_needs_no_loop(x, gap):
    t = np.arange(1, 200_000) if x == -1 else np.arange(200_000)
    start = x * (1 - gap) if x == -1 else x
    expected = np.log1p(x * (1 - gap) ** t).sum()
    assert u.log_pochhammer(start, 1 - gap, len(t)) == pytest.approx(expected, rel=1e-10)
    if gap > 1e-3:
        assert u.log_pochhammer(start, 1 - gap, inf) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [690, 698, 705, 712])
def test_the_long_product_is_sharp_where_its_terms_turn_from_large_to_small(n):
    expected = np.log1p(1e32 * 0.9 ** np.arange(n)).sum()
    assert u.log_pochhammer(1e32, 0.9, n) == pytest.approx(expected, abs=1e-9)


# --- properties -------------------------------------------------------------------------------------------------------


@given(matrices(), biases(), st.floats(0, 20), st.booleans())
def test_clip_normalise_and_softmax_return_distributions(matrix, bias, step, upper):
    for result in (
        u.projected_step(matrix, bias, step, upper=upper),
        u.softmax_step(matrix, bias, step),
        u.cross_entropy_step(matrix, 0, step),
        u.mixing_step(matrix, 0, min(step, 1)),
    ):
        assert (result >= 0).all()
        assert result.sum(axis=1) == pytest.approx(np.ones(len(matrix)))


def test_normalising_before_clipping_does_not_give_distributions():
    matrix, bias = np.full((2, 2), 0.5), np.array([[1.0, -1], [-1, 1]])
    assert u.projected_step(matrix, bias, 1, order="normalise-clip").sum(axis=1).tolist() == [1, 1]
    assert u.projected_step(matrix, bias, 1, order="normalise-clip", upper=False).sum(axis=1).tolist() == [1.5, 1.5]


def test_both_orders_agree_for_a_diagonal_bias_without_upper_clip():
    matrix, bias = np.array([[0.3, 0.7], [0.2, 0.8]]), np.diag([1.0, 0.0])
    rows = [u.projected_step(matrix, bias, 2, upper=False, order=o)[0] for o in ("clip-normalise", "normalise-clip")]
    assert rows[0] == pytest.approx(rows[1])


@given(matrices(), biases(), gammas, st.floats(0.01, 1))
def test_clip_and_normalise_obeys_recursion_and_sandwich(matrix, bias, gamma, alpha):
    names = {"escape_0": 1 - matrix[0, 0], "bias": bias[0, 0], "alpha": alpha, "gamma": gamma}
    before = matrix
    for t in range(12):
        step = alpha * gamma**t
        removed = np.minimum(before[0, 1:], -step * bias[0, 1:]).sum()
        after = u.projected_step(before, bias, step, upper=False)
        escape = 1 - before[0, 0]
        assert 1 - after[0, 0] == pytest.approx(u.projected_escape(escape, min(removed, escape), step * bias[0, 0]))
        low, high = u.clip_sandwich(t + 1, **names)
        assert low - 1e-9 <= 1 - after[0, 0] <= high + 1e-9
        before = after


@given(escapes, gammas, st.floats(1e-3, 1e9), st.integers(0, 2000))
def test_no_learning_rate_gets_below_the_harmonic_floor(escape_0, gamma, alpha, n):
    got = u.diagonal_escape(n, escape_0=escape_0, bias=1, alpha=alpha, gamma=gamma, upper=True)
    assert got >= u.harmonic_floor(n, escape_0) * (1 - 1e-9)


@given(matrices(), st.floats(0.1, 3), gammas, st.floats(0.01, 1), st.integers(0, 12))
def test_the_logit_is_linear_in_the_discounted_sum(matrix, gap, gamma, alpha, n):
    bias = np.zeros_like(matrix)
    bias[0, 0] = gap
    *_, last = u.iterate(lambda q, s: u.softmax_step(q, bias, s), matrix, alpha=alpha, gamma=gamma, n=n)
    shift = np.log(last[0, 0] / (1 - last[0, 0])) - np.log(matrix[0, 0] / (1 - matrix[0, 0]))
    assert shift == pytest.approx(alpha * gap * u.discount_sum(n, gamma), abs=1e-9)
    closed = u.softmax_escape(n, escape_0=1 - matrix[0, 0], gap=gap, alpha=alpha, gamma=gamma)
    assert 1 - last[0, 0] == pytest.approx(closed, rel=1e-9)


@given(matrices(), biases(), gammas, st.floats(0.01, 1), st.integers(0, 12))
def test_softmax_with_unequal_gaps_has_the_stated_odds(matrix, bias, gamma, alpha, n):
    *_, last = u.iterate(lambda q, s: u.softmax_step(q, bias, s), matrix, alpha=alpha, gamma=gamma, n=n)
    closed = u.softmax_row_escape(n, matrix[0], bias[0], 0, alpha=alpha, gamma=gamma)
    assert 1 - last[0, 0] == pytest.approx(closed, rel=1e-9)


@given(matrices(), gammas, st.floats(0, 1), st.integers(0, 12))
def test_mixing_multiplies_the_escape_probability(matrix, gamma, alpha, n):
    *_, last = u.iterate(lambda q, s: u.mixing_step(q, 0, s), matrix, alpha=alpha, gamma=gamma, n=n)
    closed = u.mixing_escape(n, escape_0=1 - matrix[0, 0], alpha=alpha, gamma=gamma)
    assert 1 - last[0, 0] == pytest.approx(closed, abs=1e-12)


@given(escapes, st.floats(0.001, 0.2), st.integers(1, 300))
def test_gradient_steps_are_never_slower_than_the_flow_and_follow_it_when_small(escape_0, alpha, n):
    matrix = np.array([[1 - escape_0, escape_0], [0.5, 0.5]])
    *_, last = u.iterate(lambda q, s: u.cross_entropy_step(q, 0, s), matrix, alpha=alpha, gamma=1, n=n)
    flow = u.cross_entropy_escape(n, escape_0=escape_0, alpha=alpha, gamma=1)
    assert flow * (1 - 0.35 * alpha - 1e-9) <= 1 - last[0, 0] <= flow * (1 + 1e-9)


COUNTS = {
    "additive": (u.proportional_escape, u.additive_steps, {"bias": 1.0}),
    "diagonal": (u.diagonal_escape, u.diagonal_steps, {"bias": 1.0}),
    "clipped": (
        lambda n, **k: u.diagonal_escape(n, **k, upper=True),
        lambda d, **k: u.diagonal_steps(d, **k, upper=True),
        {"bias": 1.0},
    ),
    "softmax": (u.softmax_escape, u.softmax_steps, {"gap": 1.0}),
    "cross-entropy": (u.cross_entropy_escape, u.cross_entropy_steps, {}),
    "mixing": (u.mixing_escape, u.mixing_steps, {}),
}


@pytest.mark.parametrize("rule", COUNTS)
@given(escapes, st.floats(0.001, 0.9), gammas, st.floats(0.001, 1))
def test_the_count_is_the_first_and_never_means_never(rule, escape_0, delta, gamma, alpha):
    escape, steps, names = COUNTS[rule]
    names = {**names, "escape_0": escape_0, "alpha": alpha, "gamma": gamma}
    n = steps(delta, **names)
    assume(abs(escape(inf, **names) - delta) > 1e-9)
    if np.isinf(n):
        assert escape(inf, **names) > delta
    else:
        assert escape(n, **names) <= delta * (1 + 1e-9)
        assert n == 0 or escape(n - 1, **names) > delta * (1 - 1e-9)


@pytest.mark.parametrize(
    ("threshold", "rule"),
    [
        (lambda d: u.additive_threshold(d, **rules), "additive"),
        (lambda d: u.diagonal_threshold(d, **rules), "diagonal"),
        (lambda d: u.softmax_threshold(d, escape_0=0.7, gap=1, gamma=0.9), "softmax"),
        (lambda d: u.cross_entropy_threshold(d, escape_0=0.7, gamma=0.9), "cross-entropy"),
        (lambda d: u.diagonal_threshold(d, **rules, upper=True), "clipped"),
    ],
)
@pytest.mark.parametrize("delta", [0.3, 0.05, 0.01])
def test_the_threshold_separates_some_day_from_never(threshold, rule, delta):
    _, steps, names = COUNTS[rule]
    names = {**names, "escape_0": 0.7, "gamma": 0.9}
    alpha = threshold(delta)
    assert steps(delta, **names, alpha=alpha * (1 + 1e-6)) < inf
    assert steps(delta, **names, alpha=alpha * (1 - 1e-6)) == inf


@given(escapes, budgets, gammas, st.floats(0.1, 10))
def test_only_the_product_of_learning_rate_and_bias_matters(escape_0, alpha, gamma, scale):
    one = u.additive_escape(7, escape_0=escape_0, bias=1, alpha=alpha, gamma=gamma)
    other = u.additive_escape(7, escape_0=escape_0, bias=scale, alpha=alpha / scale, gamma=gamma)
    assert one == pytest.approx(other, abs=1e-9)


@given(escapes, gammas, st.floats(0.01, 1), st.floats(0.01, 0.5))
def test_more_bias_or_more_tolerance_never_takes_longer(escape_0, gamma, alpha, delta):
    names = {"escape_0": escape_0, "bias": 1, "gamma": gamma}
    base = u.additive_steps(delta, **names, alpha=alpha)
    assert u.additive_steps(delta, **names, alpha=1.1 * alpha) <= base
    assert u.additive_steps(1.1 * delta, **names, alpha=alpha) <= base


@given(escapes, gammas, st.floats(0.001, 0.5), st.floats(0, 1))
def test_inside_the_interval_of_kappa_the_papers_count_is_enough(escape_0, gamma, delta, share):
    assume(delta < escape_0)
    low, high = u.paper_kappa(delta, escape_0=escape_0, gamma=gamma)
    alpha = (low + share * (high - low)) * u.tuned_alpha(escape_0=escape_0, bias=1, gamma=gamma)
    n = u.paper_steps(delta, gamma) + np.arange(20)
    assert (np.abs(u.additive_escape(n, escape_0=escape_0, bias=1, alpha=alpha, gamma=gamma)) <= delta + 1e-12).all()


@given(matrices(), biases(), gammas)
def test_the_largest_stochastic_learning_rate_is_sharp(matrix, bias, gamma):
    alpha = u.largest_stochastic_alpha(matrix, bias, gamma=gamma, n=9)
    for factor, valid in ((1 - 1e-6, True), (1 + 1e-3, False)):
        paths = u.iterate(lambda q, s: u.additive_step(q, bias, s), matrix, alpha=factor * alpha, gamma=gamma, n=9)
        assert all((q >= 0).all() for q in paths) == valid


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: u.additive_escape(-1, **tuned), "n must lie in"),
        (lambda: u.additive_escape(1.5, **tuned), "n must be a whole number, got 1.5"),
        (lambda: u.additive_steps(1.5, **tuned), "delta .* got 1.5"),
        (lambda: u.additive_steps(np.nan, **tuned), "delta .* got nan"),
        (lambda: u.additive_escape(1, **{**tuned, "gamma": 1.2}), "gamma .* got 1.2"),
        (lambda: u.additive_escape(1, **{**tuned, "gamma": 0}), "gamma .* got 0"),
        (lambda: u.additive_escape(1, **{**tuned, "escape_0": 0}), "escape_0 .* got 0"),
        (lambda: u.additive_escape(1, **{**tuned, "alpha": -0.1}), "alpha .* got -0.1"),
        (lambda: u.additive_escape(1, **{**tuned, "bias": inf}), "bias .* got inf"),
        (lambda: u.mixing_escape(1, escape_0=0.5, alpha=1.5, gamma=1), "alpha .* got 1.5"),
        (lambda: u.projected_escape(0.2, 0.3, 0.1), "removed .* got 0.3"),
        (lambda: u.softmax_step([[0.5, 0.6], [0.5, 0.5]], np.zeros((2, 2)), 1), "matrix .* row 0 with sum 1.1"),
        (lambda: u.additive_step(np.eye(2), np.eye(3), 1), r"bias must have the shape of matrix \(2, 2\)"),
        (lambda: u.additive_step(np.eye(2)[:1], np.eye(2), 1), r"matrix must be a square matrix, got shape \(1, 2\)"),
        (lambda: u.project([[0.5, 0.5], [-1, -1]]), "matrix .* row 1 with sum 0"),
        (lambda: u.project(np.eye(2), order="both"), "order .* got 'both'"),
        (lambda: u.largest_stochastic_alpha(np.eye(2), np.eye(2), gamma=0.5), "bias .* row 0 with sum 1"),
        (lambda: u.neutral_floor(0.7, 0.2, kappa=0.5), "kappa .* got 0.5"),
        (lambda: u.response_delta(0.1, 0), "length .* got 0"),
        (lambda: u.additive_escape("many", **tuned), "n must be numeric, got 'many'"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_the_mathematics_imports_neither_torch_nor_sympy():
    code = (
        "import sys, safetylib.chain.updates, safetylib.chain.absorbing; print({'torch', 'sympy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- thresholds and counts without a closed form ----------------------------------------------------------------------


@given(st.floats(0.02, 0.9), st.floats(0.05, 1), st.floats(0.3, 0.99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_mixing_reaches_delta_above_its_threshold_and_not_below(delta, escape_0, gamma):
    threshold = u.mixing_threshold(delta, escape_0=escape_0, gamma=gamma)
    if delta >= escape_0:
        assert threshold == 0
        return
    assert 0 < threshold < 1
    steps = [
        u.mixing_steps(delta, escape_0=escape_0, alpha=alpha, gamma=gamma)
        for alpha in (threshold * (1 - 1e-6), min(threshold * (1 + 1e-6), 1))
    ]
    assert np.isinf(steps[0]) and np.isfinite(steps[1])


def test_mixing_without_decay_needs_no_learning_rate_in_particular():
    assert u.mixing_threshold(0.01, escape_0=0.7, gamma=1) == 0


def test_discrete_cross_entropy_is_the_matrix_step():
    matrix = np.array([[0.3, 0.7], [0.5, 0.5]])
    path = u.iterate(lambda q, step: u.cross_entropy_step(q, 0, step), matrix, alpha=0.8, gamma=0.9, n=12)
    found = u.cross_entropy_iterates(12, escape_0=0.7, alpha=0.8, gamma=0.9)
    assert found == pytest.approx([1 - q[0, 0] for q in path], rel=1e-12)


@given(st.floats(0.02, 0.9), st.floats(0.05, 0.95), st.floats(0.01, 5), st.sampled_from([0.5, 0.9, 0.99, 1]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_discrete_cross_entropy_counts_are_exact_and_never_above_the_flow(delta, escape_0, alpha, gamma):
    assume(abs(delta - escape_0) > 1e-9)  # a tie is decided by rounding
    names = {"escape_0": escape_0, "alpha": alpha, "gamma": gamma}
    steps = u.cross_entropy_discrete_steps(delta, **names)
    assert steps <= u.cross_entropy_steps(delta, **names)
    path = u.cross_entropy_iterates(3000, **names)
    assert (path <= u.cross_entropy_escape(np.arange(3001), **names) * (1 + 1e-12)).all()
    if np.isfinite(steps) and steps <= 3000:
        below = path <= delta
        assert below[int(steps)] and not below[: int(steps)].any()
    elif gamma < 1:
        assert path[-1] > delta


def test_a_count_that_outlasts_the_iteration_is_an_error_not_a_number():
    with pytest.raises(ValueError, match="most must be larger"):
        u.cross_entropy_discrete_steps(1e-3, escape_0=0.7, alpha=0.1, gamma=1, most=10)


def test_the_clip_lets_go_near_the_floor():
    for alpha in (1e8, 1e16, 1e32):
        floor = u.diagonal_escape(inf, escape_0=0.7, bias=1, alpha=alpha, gamma=0.9, upper=True)
        estimate = u.clipped_floor(escape_0=0.7, bias=1, alpha=alpha, gamma=0.9)
        assert 0.9 < floor / estimate < 1.02
        # Where it lets go, by its definition: u steps in, the push equals what is left, gamma^(u - 1/e_0) alpha = 1/u.
        assert 0.9 ** (1 / estimate - 1 / 0.7) * alpha * (1 / estimate) == pytest.approx(1)


def test_a_clip_that_never_acts_has_no_point_at_which_it_lets_go():
    with pytest.raises(ValueError, match="alpha must be large enough"):
        u.clipped_floor(escape_0=0.7, bias=1, alpha=1e-3, gamma=0.9)
    with pytest.raises(ValueError, match="gamma"):
        u.clipped_floor(escape_0=0.7, bias=1, alpha=1e8, gamma=1)


@given(escapes, st.floats(0.01, 20), gammas, st.integers(0, 30))
def test_normalising_once_is_one_projection_of_all_that_was_added(escape_0, alpha, gamma, n):
    matrix, bias = np.array([[1 - escape_0, escape_0], [0.5, 0.5]]), np.diag([1.0, 0.0])
    total = u.additive_step(matrix, bias, float(alpha * u.discount_sum(n, gamma)))
    expected = 1 - u.project(total)[0, 0]
    found = u.once_normalised_escape(n, escape_0=escape_0, bias=1, alpha=alpha, gamma=gamma)
    assert found == pytest.approx(expected, rel=1e-9) and found >= escape_0 / (1 + escape_0) * (1 - 1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda q: u.additive_step(q, np.eye(3), 1),
        lambda q: u.additive_step(np.eye(3), q, 1),
        u.project,
        lambda q: u.softmax_step(q, np.eye(3), 1),
        lambda q: u.mixing_step(q, 0, 0.5),
        lambda q: u.pull(q, 0),
        lambda q: u.largest_stochastic_alpha(q, np.zeros((3, 3)), gamma=0.9),
    ],
)
def test_updates_take_dense_matrices_and_say_so(call):
    with pytest.raises(ValueError, match=r"(matrix|bias) must be a dense array, got a sparse one of shape \(3, 3\)"):
        call(sparse.eye_array(3, format="csr"))


@pytest.mark.parametrize(
    ("row", "bias_row", "state", "words"),
    [
        ([0.3, 0.7], [1, -1], 5, "state"),
        ([0.3, 0.7], [1, -1, 0], 0, "bias_row must be 1-d and as long as row"),
        ([0.3, 0.4], [1, -1], 0, "row must sum to 1, got 0.7"),
    ],
)
def test_a_softmax_row_that_is_none_is_refused(row, bias_row, state, words):
    with pytest.raises(ValueError, match=words):
        u.softmax_row_escape(3, row, bias_row, state, alpha=1, gamma=0.9)
