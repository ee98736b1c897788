"""Depth against width: the frontier in exact fractions, optima against searches, known answers, properties."""

from fractions import Fraction as F
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from safetylib.chain import tradeoff as t

inf = np.inf
near = pytest.approx
settings.register_profile("chain", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("chain")

SETTING = {"risk_0": 0.45, "gamma": 0.9}
WIDTHS = np.array([1, 3, 5, 9, 21, 101])
starts = st.floats(0.05, 0.95)
gammas = st.floats(0.3, 0.99)
tolerances = st.floats(1e-8, 0.03)
prices = st.floats(0.02, 50)

# --- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "names", "expected"),
    [
        ("any-harmful", {"bound": "any-joint"}, [37, 47, 52, 57, 66, 80]),
        ("any-harmful", {}, [37, 47, 52, 57, 65, 80]),
        ("majority", {}, [37, 20, 14, 10, 6, 2]),
        ("majority", {"bound": "hoeffding"}, [inf, inf, inf, inf, 10, 3]),
        ("any-refusal", {}, [37, 7, 2, 0, 0, 0]),
        ("majority", {"model": "copula", "correlation": 0.2}, [37, 23, 19, 16, 13, 11]),
        ("majority", {"model": "copula", "correlation": 0.5}, [37, 28, 26, 24, 23, 22]),
        ("any-refusal", {"bound": "any-joint"}, [37] * 6),
    ],
)
def test_the_table_of_depths(rule, names, expected):
    assert t.frontier(WIDTHS, 0.01, rule, **SETTING, **names).tolist() == expected


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (t.depth_floor(0.01, [0.2, 0.5], **SETTING), near([10.5, 20.9], abs=0.05)),
        (t.depth_floor(0.01, 0, **SETTING), 0),
        (t.steps_to_risk([0.05, 0.45, 0.9, 0, -0.3], risk_0=0.45, gamma=1 / 3).tolist(), [2, 0, 0, inf, inf]),
        (t.any_refusal_crossover(risk_0=0.25, gamma=0.5), 2),
        (t.any_refusal_optimum(2**-20, risk_0=0.25, gamma=0.5, step_cost=1, member_cost=3), near((1, 18, 21))),
        (t.any_refusal_optimum(2**-20, risk_0=0.25, gamma=0.5, step_cost=1, member_cost=1), near((10, 0, 10))),
        (t.any_refusal_optimum(0.3, risk_0=0.25, gamma=0.5, step_cost=1, member_cost=1), (1, 0, 1)),
        (t.majority_crossover(risk_0=[0.5, 0.8], gamma=0.9).tolist(), [0, 0]),
        (t.majority_crossover(risk_0=0.45, gamma=0.9), near(0.0477, abs=1e-4)),
        (t.majority_optimum(0.01, **SETTING, step_cost=1, member_cost=5).width, 1),
        (t.cheapest(0.01, **SETTING, step_cost=1, member_cost=1), (1, 37, 38)),
    ],
)
def test_known_answers(got, expected):
    assert got == expected


@pytest.mark.parametrize(("correlation", "width", "steps"), [
    (0, 11, 8), (0.05, 9, 11), (0.2, 7, 17), (0.5, 5, 26), (0.8, 3, 33),
])  # fmt: skip
def test_correlation_moves_the_cheapest_design_towards_depth(correlation, width, steps):
    names = {} if correlation == 0 else {"model": "copula", "correlation": correlation}
    design = t.cheapest(0.01, **SETTING, step_cost=1, member_cost=0.5, paid="once", widths=np.arange(1, 42, 2), **names)
    assert design[:2] == (width, steps)


@pytest.mark.parametrize("member_cost", [1, 5, 20, 60])
def test_width_does_not_pay_where_every_member_is_trained(member_cost):
    assert t.cheapest(0.01, **SETTING, step_cost=1, member_cost=member_cost).width == 1


# --- against exact fractions and searches -----------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "quorum"), [
    ("any-harmful", lambda w: 1), ("majority", lambda w: (w + 1) // 2), ("any-refusal", lambda w: w),
])  # fmt: skip
@pytest.mark.parametrize(("start", "gamma"), [(F(9, 20), F(9, 10)), (F(4, 5), F(1, 2)), (F(1, 100), F(1, 2))])
def test_the_frontier_is_the_first_depth_that_is_enough_in_fractions(rule, quorum, start, gamma):
    for width in (1, 2, 3, 6, 9):
        p, steps, m = start, 0, quorum(width)
        while sum(comb(width, k) * p**k * (1 - p) ** (width - k) for k in range(m, width + 1)) > F(1, 200):
            p, steps = p * gamma, steps + 1
        assert t.frontier(width, 0.005, rule, risk_0=float(start), gamma=float(gamma)) == steps


@given(tolerances, starts, gammas, prices)
def test_any_refusal_is_cheapest_at_an_end_and_no_design_on_the_boundary_is_cheaper(epsilon, start, gamma, price):
    best = t.any_refusal_optimum(epsilon, risk_0=start, gamma=gamma, step_cost=1, member_cost=price)
    a, s, E = -np.log([start, gamma, epsilon])
    width = np.linspace(1, max(E / a, 1), 500)
    cost = width * (np.maximum(E / width - a, 0) / s + price)
    assert best.cost <= cost.min() * (1 + 1e-9)
    assert best.width == 1 or best.steps == 0
    assert start**best.width * gamma ** (best.width * best.steps) <= epsilon * (1 + 1e-6)


@given(st.floats(1e-8, 0.01), st.floats(0.05, 0.9), gammas, prices)
def test_the_hoeffding_optimum_is_the_least_of_its_cost(epsilon, start, gamma, price):
    best = t.hoeffding_optimum(epsilon, risk_0=start, gamma=gamma, step_cost=1, member_cost=price)
    E, s = -np.log([epsilon, gamma])

    def cost(n):
        room = 0.5 - start * np.exp(-s * n)
        return np.where(room > 0, E * (n + price) / (2 * np.maximum(room, 1e-12) ** 2), inf)

    grid = np.concatenate([[0], np.geomspace(1e-3, 60 / s, 4000)])
    assert best.cost == near(cost(best.steps), rel=1e-9)
    assert best.cost <= cost(grid).min() * (1 + 1e-9)


@given(tolerances, starts, st.floats(0.01, 10), prices)
def test_the_harmonic_optimum_is_the_least_of_its_cost(epsilon, start, rate, price):
    best = t.cross_entropy_optimum(epsilon, risk_0=start, rate=rate, step_cost=1, member_cost=price)
    E, a = -np.log([epsilon, start])
    n = np.concatenate([[0], np.geomspace(1e-3 / rate, 1e9 / rate, 4000)])
    width = np.maximum(E / (a + np.log1p(rate * n)), 1)
    assert best.cost <= (width * (n + price)).min() * (1 + 1e-9)
    assert best.width == near(max(E / (a + np.log1p(rate * best.steps)), 1), rel=1e-6)


@pytest.mark.parametrize("price", [1, 1 + 1e-9, 1 - 1e-9])
def test_the_harmonic_optimum_is_continuous_where_k_vanishes(price):
    best = t.cross_entropy_optimum(1e-6, risk_0=0.5, rate=1, step_cost=1, member_cost=price)
    assert best.steps == near(np.e / 2 - 1, rel=1e-6)


@given(tolerances, starts, gammas, prices)
def test_trained_once_is_cheapest_where_the_formula_says(epsilon, start, gamma, price):
    best = t.trained_once_optimum(epsilon, risk_0=start, gamma=gamma, step_cost=1, member_cost=price)
    a, s, E = -np.log([start, gamma, epsilon])
    width = np.geomspace(1, max(E / a, 1), 2000)
    cost = np.maximum(E / width - a, 0) / s + price * width
    assert best.cost <= cost.min() * (1 + 1e-9)
    assert best.cost == near(best.steps + price * best.width)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-8])
def test_the_majority_approximation_of_trained_once_is_near_the_exact_design(epsilon):
    names = {"risk_0": 0.45, "gamma": 0.9, "step_cost": 1, "member_cost": 5}
    real, whole = t.trained_once_optimum(epsilon, "majority", **names), t.cheapest(epsilon, paid="once", **names)
    assert real.width == near(whole.width, abs=3)
    assert real.cost == near(whole.cost, rel=0.3)


@given(st.floats(0.1, 500), starts, gammas, prices)
def test_no_division_of_a_budget_has_less_risk(budget, start, gamma, price):
    if budget < price:
        return
    best = t.least_risk(budget, risk_0=start, gamma=gamma, step_cost=1, member_cost=price)
    steps = np.linspace(0, budget - price, 2000)
    risk = np.exp((budget - steps) / price * (np.log(start) + steps * np.log(gamma)))
    assert best.epsilon <= risk.min() * (1 + 1e-9)
    assert best.steps + price * best.width == near(budget)


def test_budget_and_target_are_two_sides_of_one_optimum():
    names = {"risk_0": 0.45, "gamma": 0.9, "step_cost": 1, "member_cost": 2}
    design = t.trained_once_optimum(1e-6, **names)
    assert t.least_risk(design.cost, **names) == near((1e-6, design.width, design.steps))


def test_a_majority_bounded_sharply_has_no_optimum_inside():
    s, E = -np.log([0.9, 0.01])
    for price in (0.01, 0.05, 1, 20):

        def cost(n, price=price):
            p = 0.3 * np.exp(-s * n)
            return 2 * E * (n + price) / -np.log(4 * p * (1 - p))

        found = minimize_scalar(cost, bounds=(0, 60), method="bounded", options={"xatol": 1e-9})
        assert min(found.x, 60 - found.x) < 1e-3


# --- properties -------------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 0.2), st.floats(0.05, 0.95), gammas)
def test_width_shallows_a_vote_and_deepens_a_union(epsilon, start, gamma):
    odd = np.arange(1, 60, 2)
    names = {"risk_0": start, "gamma": gamma}
    assert (np.diff(t.frontier(odd, epsilon, "majority", **names)) <= 0).all()
    assert (np.diff(t.frontier(odd, epsilon, "any-refusal", **names)) <= 0).all()
    assert (np.diff(t.frontier(odd, epsilon, "any-harmful", **names)) >= 0).all()
    exact, kl, hoeffding = (t.frontier(odd, epsilon, bound=bound, **names) for bound in ("exact", "kl", "hoeffding"))
    assert (exact <= kl).all() and (kl <= hoeffding).all()


@given(st.floats(1e-4, 0.1), st.floats(0.1, 0.9), st.floats(0.05, 0.9))
@settings(max_examples=15)
def test_no_width_gets_below_the_floor(epsilon, start, correlation):
    names = {"risk_0": start, "gamma": 0.9}
    depth = t.frontier([1, 9, 201], epsilon, **names, model="copula", correlation=correlation)
    assert (depth >= t.depth_floor(epsilon, correlation, **names) - 1e-6).all()


def test_functions_broadcast():
    names = {"risk_0": np.array([0.3, 0.45, 0.8]), "gamma": 0.9, "step_cost": 1, "member_cost": np.array([[1], [20]])}
    for optimum in (t.any_refusal_optimum, t.majority_optimum, t.hoeffding_optimum, t.trained_once_optimum):
        grid = optimum(1e-4, **names)
        assert grid.cost.shape == (2, 3)
        one = optimum(1e-4, risk_0=0.8, gamma=0.9, step_cost=1, member_cost=20)
        assert [column[1, 2] for column in grid] == near(list(one))


# --- arguments --------------------------------------------------------------------------------------------------------

PRICES = {"step_cost": 1, "member_cost": 1}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: t.frontier(0, 0.01, **SETTING), "width .* got 0"),
        (lambda: t.frontier(3, 1.5, **SETTING), "epsilon .* got 1.5"),
        (lambda: t.frontier(3, 0.01, risk_0=0.4, gamma=1), "gamma .* got 1"),
        (lambda: t.frontier(3, 0.01, risk_0=0, gamma=0.9), "risk_0 .* got 0"),
        (lambda: t.frontier(3, 0.01, "plurality", **SETTING), "rule .* got 'plurality'"),
        (lambda: t.frontier(3, 0.01, bound="chebyshev", **SETTING), "bound .* got 'chebyshev'"),
        (lambda: t.frontier(3, 0.01, "any-refusal", bound="kl", **SETTING), "rule .* got 'any-refusal'"),
        (lambda: t.steps_to_risk(np.nan, **SETTING), "required .* got nan"),
        (lambda: t.cheapest(0.01, **SETTING, **PRICES, paid="twice"), "paid .* got 'twice'"),
        (lambda: t.cheapest(0, **SETTING, **PRICES), "epsilon .* got 0"),
        (lambda: t.any_refusal_optimum(0, **SETTING, **PRICES), "epsilon .* got 0"),
        (lambda: t.hoeffding_optimum(0.01, **SETTING, step_cost=0, member_cost=1), "step_cost .* got 0"),
        (lambda: t.cross_entropy_optimum(0.01, risk_0=0.4, rate=-1, **PRICES), "rate .* got -1"),
        (lambda: t.trained_once_optimum(0.01, "any-harmful", **SETTING, **PRICES), "rule .* got 'any-harmful'"),
        (lambda: t.least_risk(0.5, **SETTING, **PRICES), "budget must pay for one member, got 0.5"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(call, named):
    with pytest.raises(ValueError, match=named):
        call()
