"""Ensembles: known answers, exact rationals, brute force over all outcomes, other libraries, properties."""

from fractions import Fraction as F
from itertools import pairwise, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from scipy.special import betaln, gammaln, ndtr, ndtri

from safetylib.chain import ensemble as e

inf = np.inf
settings.register_profile("chain", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("chain")

risks = st.floats(0.001, 0.999)
small_risks = st.floats(0.01, 0.49)
widths = st.integers(1, 60)
correlations = st.floats(0.001, 0.95)
tolerances = st.floats(1e-6, 0.4)
near = pytest.approx


def majority(width):
    return e.unsafe_quorum("majority", width)


# --- known answers ----------------------------------------------------------------------------------------------------

WIDTHS = np.array([3, 5, 9, 11, 21, 101])
# epsilon = .01: union bound, Hoeffding, Kullback-Leibler, exact majority, any refusal
REQUIRED = np.array(
    [
        [0.0033, -0.376, 0.0117, 0.0589, 0.215],
        [0.0020, -0.179, 0.0413, 0.1056, 0.398],
        [0.0011, -0.006, 0.0998, 0.1710, 0.600],
        [0.0009, 0.0425, 0.1235, 0.1940, 0.658],
        [0.0005, 0.1689, 0.2021, 0.2642, 0.803],
        [0.0001, 0.3490, 0.3524, 0.3861, 0.955],
    ]
)


def test_the_table_of_required_risks():
    got = (
        e.any_joint_required_p(0.01, WIDTHS, 1),
        e.hoeffding_required_p(0.01, WIDTHS),
        e.kl_required_p(0.01, WIDTHS),
        e.required_p(0.01, WIDTHS, majority(WIDTHS)),
        e.required_p(0.01, WIDTHS, WIDTHS),
    )
    assert np.abs(np.stack(got, axis=1) - REQUIRED).max() < 6e-4


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (e.unsafe_quorum("majority", [1, 2, 3, 4, 5]).tolist(), [1, 1, 2, 2, 3]),
        (e.unsafe_quorum("majority-ties-safe", [1, 2, 3, 4, 5]).tolist(), [1, 2, 2, 3, 3]),
        (e.unsafe_quorum("any-harmful", 7), 1),
        (e.unsafe_quorum("any-refusal", 7), 7),
        (e.unsafe_quorum("average", 100, 0.07), 7),
        (e.unsafe_quorum("average", [4, 5], 0.5).tolist(), [2, 3]),
        (e.unsafe_quorum("average", 3, 1e-3), 1),
        (e.independent_risk(0.1, 3, 2), near(0.028)),
        (e.independent_risk(0.2, 2, 2), near(0.04)),
        (e.any_joint_risk(0.54, 3, 2).low, near(1 - 0.69)),
        (1 - e.any_joint_risk(0.54, np.array([5, 7]), np.array([3, 4])).low, near([0.7667, 0.805], abs=1e-4)),
        (e.any_joint_risk(0.46, 4, 3).high, near(0.6133, abs=1e-4)),
        (e.any_joint_risk(0.6, 3, 1), (near(0.6), 1)),
        (1 - e.independent_risk(0.54, [3, 5, 7], [2, 3, 4]), near([0.440, 0.425, 0.413], abs=5e-4)),
        (1 - 0.54 ** np.array([3, 4, 5]), near([0.84, 0.92, 0.95], abs=6e-3)),
        (e.hoeffding_vacuous_width(0.01), near(9.2103, abs=1e-4)),
        (e.copula_floor_required_p(0.01, [0.3, 0.6]), near([0.101, 0.036], abs=5e-4)),
        (e.copula_floor(e.copula_floor_required_p(0.01, 0.3), 0.3), near(0.01)),
        (e.beta_binomial_floor(0.2, 0.5), near(stats.beta.sf(0.5, 0.2, 0.8))),
        (e.beta_binomial_floor([0.2, 0.5, 0.8], 0).tolist(), [0, 0.5, 1]),
        (e.copula_floor([0.2, 0.2], [0, 1]).tolist(), [0, 0.2]),
        (e.effective_width(np.array([1, 10, 10_000]), 0.1), near([1, 10 / 1.9, 9.99], abs=1e-2)),
        (e.risk_equivalent_width(e.independent_risk(0.2, 9, 5), 0.2), near(9)),
        (e.risk_equivalent_width(0.2, 0.2), near(1)),
        (e.risk_equivalent_width(e.beta_binomial_floor(0.2, 0.1), 0.2), near(8.15, abs=5e-3)),
        (e.kl_required_p(0.01, 3, 1.0), near(0.01 ** (1 / 3))),
        (e.required_width(0.01, [0.1, 0.2, 0.3], "majority").tolist(), [5, 13, 31]),
        (e.required_width(0.01, [0.009, 0.5, 0.6, 1], "majority").tolist(), [1, inf, inf, inf]),
        (e.required_width(0.05, [0.2, 0.3], "majority-ties-safe").tolist(), [2, 10]),
        (e.required_width(0.1, [0.54, 0.58, 0], "any-refusal").tolist(), [4, 5, 1]),
        (e.required_width(0.1, [0.05, 0.2], "any-harmful").tolist(), [1, inf]),
        (e.required_width(0.01, 0.11, "majority", model="copula", correlation=0.3), inf),
        (e.required_width(0.01, 0.1, "any-refusal", model="copula", correlation=1), inf),
        (e.copula_correlation(0.5, 0.5), near(1 / 3)),  # 2 arcsin(rho) / pi
        (e.copula_correlation(0.2, [0, 1]), near([0, 1])),
    ],
)
def test_known_answers(got, expected):
    assert got == expected


def test_a_wide_vote_is_computed_as_one_number():
    width = 10_000
    for p, rho in ((0.4, 0.0), (0.4, 0.3), (0.4, 0.99)):
        for function in (e.beta_binomial_risk, e.copula_risk):
            assert function(p, width, majority(width), rho) == near(
                {"beta_binomial_risk": e.beta_binomial_floor, "copula_risk": e.copula_floor}[function.__name__](p, rho),
                rel=2e-3, abs=1e-12,
            )  # fmt: skip
    assert e.independent_risk(0.49, width, majority(width)) == near(stats.binom.sf(4999, width, 0.49), rel=1e-9)


def test_a_correlation_of_a_tenth_saturates_below_the_width_that_the_variance_promises():
    floor = e.beta_binomial_floor(0.2, 0.1)
    assert e.risk_equivalent_width(floor, 0.2) < e.effective_width(10**9, 0.1) == near(10, abs=1e-6)


# --- against brute force and other libraries --------------------------------------------------------------------------


def exact_tail(p, width, quorum):
    return sum(comb(width, k) * p**k * (1 - p) ** (width - k) for k in range(quorum, width + 1))


@pytest.mark.parametrize("p", [F(1, 1000), F(1, 10), F(1, 2), F(27, 50), F(9, 10)])
def test_independent_risk_is_the_binomial_tail_in_fractions(p):
    for width in (1, 2, 3, 6, 11, 40):
        for quorum in {1, (width + 1) // 2, width // 2 + 1, width}:
            exact = float(exact_tail(p, width, quorum))
            assert e.independent_risk(float(p), width, quorum) == near(exact, rel=1e-11)
            if exact < 0.999:  # above, many p round to the same risk
                assert e.independent_required_p(exact, width, quorum) == near(float(p), rel=1e-9)


@pytest.mark.parametrize("p", [F(1, 20), F(1, 5), F(3, 5)])
@pytest.mark.parametrize("rho", [F(0), F(1, 10), F(1, 2), F(9, 10)])
def test_beta_binomial_risk_is_an_urn_in_fractions(p, rho):
    """Draw members one by one: each harmful one makes the next more likely to be."""
    states = {(0, 0): F(1)}
    for width in range(1, 8):
        following = {}
        for (drawn, harmful), share in states.items():
            chance = (p * (1 - rho) + harmful * rho) / (1 - rho + drawn * rho)
            for new, weight in ((1, chance), (0, 1 - chance)):
                key = (drawn + 1, harmful + new)
                following[key] = following.get(key, 0) + share * weight
        states = following
        for quorum in range(1, width + 1):
            exact = sum(share for (_, harmful), share in states.items() if harmful >= quorum)
            assert e.beta_binomial_risk(float(p), width, quorum, float(rho)) == near(float(exact), rel=1e-12)


def test_beta_binomial_closed_forms_for_one_and_for_all():
    p, rho, width = 0.3, 0.2, np.array([1, 5, 50, 2000])
    a, b = p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho
    every = np.exp(betaln(a + width, b) - betaln(a, b))
    assert e.beta_binomial_risk(p, width, width, rho) == near(every, rel=1e-10)
    assert e.beta_binomial_risk(p, width, 1, rho) == near(1 - np.exp(betaln(a, b + width) - betaln(a, b)), rel=1e-10)
    tail = np.exp(gammaln(a + b) - gammaln(a)) * width[-1] ** -b  # polynomial in W, not exponential
    assert every[-1] == near(tail, rel=0.01)


@pytest.mark.parametrize(("p", "width", "quorum", "rho"), [
    (0.2, 101, 51, 0.8), (0.2, 5, 5, 0.3), (0.05, 1001, 501, 0.5), (0.4, 10_000, 5000, 0.95), (0.3, 9, 1, 0.6),
    (0.01, 3, 2, 0.05),
])  # fmt: skip
def test_copula_risk_agrees_with_adaptive_quadrature(p, width, quorum, rho):
    def integrand(z):
        given = ndtr((ndtri(p) - np.sqrt(rho) * z) / np.sqrt(1 - rho))
        return stats.binom.sf(quorum - 1, width, given) * stats.norm.pdf(z)

    turn = (ndtri(p) - np.sqrt(1 - rho) * ndtri(min(quorum / width, 0.99))) / np.sqrt(rho)
    ends = np.clip([-8.5, turn - 1, turn - 0.02, turn, turn + 0.02, turn + 1, 8.5], -8.5, 8.5)
    exact = sum(integrate.quad(integrand, *piece, epsabs=1e-14, limit=200)[0] for piece in pairwise(ends))
    assert e.copula_risk(p, width, quorum, rho) == near(exact, rel=1e-7)


def test_copula_votes_agree_with_simulated_members():
    rng = np.random.default_rng(4)
    p, width, rho, draws = 0.3, 5, 0.4, 40_000
    latent = np.sqrt(rho) * rng.normal(size=(draws, 1)) + np.sqrt(1 - rho) * rng.normal(size=(draws, width))
    harmful = latent < ndtri(p)
    for rule in ("any-harmful", "majority", "any-refusal"):
        quorum = e.unsafe_quorum(rule, width)
        share = e.unsafe_outcome(harmful, quorum).mean()
        risk = e.copula_risk(p, width, quorum, rho)
        assert abs(share - risk) < 4 * np.sqrt(risk * (1 - risk) / draws)
    pair = np.corrcoef(harmful[:, 0], harmful[:, 1])[0, 1]
    assert pair == near(e.copula_correlation(p, rho), abs=0.02)


@pytest.mark.parametrize(("width", "quorum"), [(1, 1), (3, 2), (4, 2), (4, 3), (5, 1), (5, 5)])
@pytest.mark.parametrize("p", [0.1, 0.46, 0.54, 0.9])
def test_no_joint_law_found_by_linear_programming_leaves_the_range(width, quorum, p):
    outcomes = np.array(list(product([0, 1], repeat=width)))
    unsafe = (outcomes.sum(axis=1) >= quorum).astype(float)
    conditions = np.vstack([outcomes.T, np.ones(len(outcomes))])
    wanted = np.append(np.full(width, p), 1)
    ends = [sign * optimize.linprog(sign * unsafe, A_eq=conditions, b_eq=wanted).fun for sign in (1, -1)]
    assert e.any_joint_risk(p, width, quorum) == near(ends, abs=1e-9)
    for end, risk in zip(("low", "high"), ends, strict=True):
        law = e.extreme_law(p, width, quorum, end)
        assert law.min() >= 0 and law.sum() == near(1) and law @ np.arange(width + 1) == near(width * p)
        assert law[quorum:].sum() == near(risk, abs=1e-9)


@pytest.mark.parametrize("rule", ["majority", "majority-ties-safe", "any-refusal"])
@pytest.mark.parametrize(
    "names", [{}, {"model": "copula", "correlation": 0.1}, {"model": "beta-binomial", "correlation": 0.1}]
)
@pytest.mark.parametrize(("epsilon", "p"), [(0.05, 0.06), (0.02, 0.1), (0.05, 0.2), (0.19, 0.45)])
def test_the_required_width_is_the_first_that_is_enough(rule, names, epsilon, p):
    every = np.arange(1, 200)
    enough = np.flatnonzero(e.risk(p, every, e.unsafe_quorum(rule, every), **names) <= epsilon)
    got = e.required_width(epsilon, p, rule, **names)
    assert got == every[enough[0]] if enough.size else got > 199


# --- properties -------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 0.5), widths, st.sampled_from(["majority", "majority-ties-safe"]))
def test_each_bound_is_above_the_sharper_one(p, width, rule):
    risk = e.independent_risk(p, width, e.unsafe_quorum(rule, width))
    assert risk <= e.kl_risk(p, width) * (1 + 1e-12)
    assert e.kl_risk(p, width) <= e.hoeffding_risk(p, width) * (1 + 1e-12)


@given(tolerances, widths, st.sampled_from(["majority", "majority-ties-safe"]))
def test_the_sharper_the_bound_the_more_it_admits(epsilon, width, rule):
    exact = e.required_p(epsilon, width, e.unsafe_quorum(rule, width))
    assert exact >= e.kl_required_p(epsilon, width) - 1e-12
    assert e.kl_required_p(epsilon, width) >= max(e.hoeffding_required_p(epsilon, width), 0)
    assert (e.hoeffding_required_p(epsilon, width) <= 0) == (width <= e.hoeffding_vacuous_width(epsilon))


@given(tolerances, widths, st.floats(0.05, 1))
def test_a_bound_at_the_p_it_requires_is_epsilon(epsilon, width, threshold):
    assert e.kl_risk(e.kl_required_p(epsilon, width, threshold), width, threshold) == near(epsilon, rel=1e-6)
    hoeffding = e.hoeffding_required_p(epsilon, width, threshold)
    if hoeffding > 0:
        assert e.hoeffding_risk(hoeffding, width, threshold) == near(epsilon)


@given(risks, widths, st.data(), correlations)
def test_every_model_stays_within_what_the_marginals_allow_and_p_means_p(p, width, data, correlation):
    quorum = data.draw(st.integers(1, width))
    low, high = e.any_joint_risk(p, width, quorum)
    for model in e.MODELS:
        rho = 0 if model == "independent" else correlation
        assert low - 1e-9 <= e.risk(p, width, quorum, model=model, correlation=rho) <= high + 1e-9
        assert e.risk(p, 1, 1, model=model, correlation=rho) == near(p, abs=1e-9)


@given(small_risks, st.integers(1, 20), correlations)
def test_correlation_costs_a_majority_but_never_more_than_one_member_would(p, half_width, rho):
    width = 2 * half_width + 1
    independent = e.independent_risk(p, width, majority(width))
    for model in (e.beta_binomial_risk, e.copula_risk):
        assert independent - 1e-12 <= model(p, width, majority(width), rho) <= p + 1e-12


@given(small_risks, correlations, st.integers(1, 20))
def test_an_odd_majority_approaches_its_floor_from_above(p, rho, half_width):
    widths = 2 * np.array([half_width, half_width + 1, half_width + 40]) + 1
    for risk, floor in ((e.beta_binomial_risk, e.beta_binomial_floor), (e.copula_risk, e.copula_floor)):
        path = risk(p, widths, majority(widths), rho)
        assert path[0] >= path[1] - 1e-12 >= path[2] - 2e-12 >= floor(p, rho) - 3e-12


@given(small_risks, st.sampled_from([3, 9, 21, 51]), st.floats(0.01, 0.9))
def test_the_width_of_equal_variance_promises_too_much(p, width, rho):
    risk = e.beta_binomial_risk(p, width, majority(width), rho)
    assert e.risk_equivalent_width(risk, p) <= e.effective_width(width, rho) + 1e-6


@given(tolerances, st.integers(1, 25), correlations, st.sampled_from(["beta-binomial", "copula"]), st.data())
@settings(max_examples=20)
def test_the_required_p_has_the_tolerated_risk(epsilon, width, rho, model, data):
    quorum = data.draw(st.integers(1, width))
    p = e.required_p(epsilon, width, quorum, model=model, correlation=rho)
    assert e.risk(p, width, quorum, model=model, correlation=rho) == near(epsilon, rel=1e-6)


@pytest.mark.parametrize("model", ["beta-binomial", "copula"])
@pytest.mark.parametrize("quorum", [1, 3, 5])
def test_the_ends_of_correlation_are_independent_and_identical_members(model, quorum):
    p = np.array([0, 0.2, 0.7, 1])
    assert e.risk(p, 5, quorum, model=model, correlation=0) == near(e.independent_risk(p, 5, quorum), rel=1e-11)
    assert e.risk(p, 5, quorum, model=model, correlation=1) == near(p)
    assert e.risk(p, 5, quorum, model=model, correlation=1e-9) == near(e.independent_risk(p, 5, quorum), rel=1e-5)
    assert e.required_p(0.1, 5, quorum, model=model, correlation=1) == near(0.1)


def test_functions_broadcast():
    p, width = np.array([0.1, 0.2, 0.3]), np.array([[3], [5]])
    for model, rho in (("independent", 0), ("beta-binomial", 0.2), ("copula", 0.2)):
        grid = e.risk(p, width, majority(width), model=model, correlation=rho)
        assert grid.shape == (2, 3)
        assert grid[1, 2] == e.risk(0.3, 5, 3, model=model, correlation=rho)
    assert e.required_width([0.01, 0.05], 0.2, "majority").shape == (2,)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: e.independent_risk(1.2, 3, 2), "p must lie in .* got 1.2"),
        (lambda: e.independent_risk(np.nan, 3, 2), "p .* got nan"),
        (lambda: e.independent_risk(0.2, 0, 1), "width .* got 0"),
        (lambda: e.independent_risk(0.2, 2.5, 1), "width must be a whole number, got 2.5"),
        (lambda: e.independent_risk(0.2, inf, 1), "width .* got inf"),
        (lambda: e.independent_risk(0.2, 3, 4), "quorum must not exceed width, got 4"),
        (lambda: e.independent_risk(0.2, 3, 0), "quorum .* got 0"),
        (lambda: e.independent_required_p(-0.1, 3, 2), "epsilon .* got -0.1"),
        (lambda: e.hoeffding_required_p(0, 3), "epsilon .* got 0"),
        (lambda: e.kl_risk(0.1, 3, 0), "threshold .* got 0"),
        (lambda: e.beta_binomial_risk(0.2, 3, 2, -0.1), "correlation .* got -0.1"),
        (lambda: e.copula_risk(0.2, 3, 2, 1.1), "correlation .* got 1.1"),
        (lambda: e.risk(0.2, 3, 2, model="normal"), "model .* got 'normal'"),
        (lambda: e.risk(0.2, 3, 2, correlation=0.3), "correlation must be 0 for independent members, got 0.3"),
        (lambda: e.required_width(0.1, 0.2, "average"), "rule .* got 'average'"),
        (lambda: e.unsafe_quorum("plurality", 3), "rule .* got 'plurality'"),
        (lambda: e.unsafe_outcome([0, 0.5, 1], 2), "harmful must hold zeros and ones, got 0.5"),
        (lambda: e.unsafe_outcome([0, 1, 1], 4), "quorum must not exceed width, got 4"),
        (lambda: e.risk_equivalent_width(0.3, 0.2), "majority_risk must not exceed p, got 0.3"),
        (lambda: e.risk_equivalent_width(0.1, 0.6), "p .* got 0.6"),
        (lambda: e.extreme_law(0.3, 3, 2, "middle"), "end .* got 'middle'"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(call, named):
    with pytest.raises(ValueError, match=named):
        call()
