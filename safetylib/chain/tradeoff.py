r"""Depth against width: how many updates, how many members, for a given risk at the least cost.

**Setting.** Training brings a member's risk from :math:`p_0` down along :math:`p(n)`, with n updates; unless said
otherwise geometrically, :math:`p(n) = p_0\gamma^n` (chapter 2's additive rule at its tuned learning rate). W members
vote, and the ensemble's risk has to be at most :math:`\varepsilon`. We write

.. math:: a = \ln(1/p_0), \quad s = \ln(1/\gamma), \quad E = \ln(1/\varepsilon).

The *frontier* :math:`n(W) = \lceil\ln(p_0/p_{\mathrm{req}}(W,\varepsilon))/s\rceil` is the depth that width W needs,
where :math:`p_{\mathrm{req}}` is what the voting rule requires of a member (:mod:`safetylib.chain.ensemble`).

Two ways to pay, with :math:`c_t` an update's and :math:`c_i` a member's own cost (its answers, say):

* *every member is trained*: :math:`W(c_tn+c_i)`;
* *trained once*, W members drawn from one run: :math:`c_tn+c_iW`.

**Facts.**

* *Every member trained, one refusal is enough.* Feasible iff :math:`W(a+sn)\ge E`. On this boundary the cost is
  affine in W: the optimum is an end, deep and narrow if :math:`c_i/c_t > a/s`, wide and shallow if less.
* *A majority, sharp (Chernoff) exponent.* The same: no interior optimum.
* *A majority, Hoeffding's exponent.* An interior optimum, by Lambert's W on the branch -1. It is an artefact of that
  bound.
* *In general* one minimises :math:`(c_tn+c_i)/\varphi(n)` with :math:`\varphi=-\ln p`: an end if
  :math:`\varphi` is convex or linear, one tangent point if it is concave, as for :math:`p_0/(1+\eta n)`.
* *Trained once.* A true balance: :math:`W^*=\sqrt{c_tE/(sc_i)}`.
* *Correlation* puts a floor under depth that no width removes.

Optima are over real numbers with :math:`W\ge1`, :math:`n\ge0`; :func:`cheapest` searches whole ones on the exact
frontier.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import lambertw

from safetylib.chain import ensemble
from safetylib.chain.checks import check_count, check_range

BOUNDS = ("exact", "any-joint", "kl", "hoeffding")
PAID = ("every", "once")


class Design(NamedTuple):
    """A width, a depth, and what they cost."""

    width: np.ndarray
    steps: np.ndarray
    cost: np.ndarray


class Budget(NamedTuple):
    """The least risk that a budget buys, and with which width and depth."""

    epsilon: np.ndarray
    width: np.ndarray
    steps: np.ndarray


# --- the frontier -----------------------------------------------------------------------------------------------------


def steps_to_risk(required, *, risk_0, gamma) -> np.ndarray:
    r"""The smallest n with :math:`p_0\gamma^n\le` ``required``; infinite where ``required`` is not positive."""
    required = check_range("required", required, "(-inf, 1]")
    risk_0, gamma = _training(risk_0, gamma)
    with np.errstate(divide="ignore"):
        real = np.log(risk_0 / np.maximum(required, 0)) / -np.log(gamma)
    return np.ceil(np.maximum(real * (1 - 1e-13), 0))[()]


def frontier(
    width, epsilon, rule: str = "majority", *, risk_0, gamma, bound: str = "exact", model="independent", correlation=0.0
) -> np.ndarray:
    r"""The number of updates n(W) that each of ``width`` members needs for an ensemble's risk of ``epsilon``.

    Parameters
    ----------
    width, epsilon
        Numbers of members, tolerated risks.
    rule
        One of :data:`safetylib.chain.ensemble.RULES`, without ``"average"``.
    risk_0, gamma
        A member's risk before training, and the factor by which an update multiplies it.
    bound
        What a member's risk is required to be: ``"exact"`` under ``model`` and ``correlation``, ``"any-joint"`` for
        safety under every dependence, ``"kl"`` or ``"hoeffding"`` (Proposition 4.11's) for an independent majority.

    Returns
    -------
    ndarray
        Infinite where the bound admits no positive risk.
    """
    quorum = ensemble.unsafe_quorum(rule, width)
    match bound:
        case "exact":
            required = ensemble.required_p(epsilon, width, quorum, model=model, correlation=correlation)
        case "any-joint":
            required = ensemble.any_joint_required_p(epsilon, width, quorum)
        case "kl" | "hoeffding" if rule in ("majority", "majority-ties-safe"):
            of = ensemble.kl_required_p if bound == "kl" else ensemble.hoeffding_required_p
            required = of(epsilon, width)
        case "kl" | "hoeffding":
            raise ValueError(f"rule must be a majority for bound {bound!r}, got {rule!r}")
        case _:
            raise ValueError(f"bound must be one of {', '.join(BOUNDS)}, got {bound!r}")
    return steps_to_risk(required, risk_0=risk_0, gamma=gamma)


def depth_floor(epsilon, correlation, *, risk_0, gamma) -> np.ndarray:
    r""":math:`\ln(p_0/\Phi(\sqrt\rho\,\Phi^{-1}(\varepsilon)))/s`: no majority of copula members, however wide (odd, or
    ties unsafe), does with fewer updates; not rounded."""
    risk_0, gamma = _training(risk_0, gamma)
    required = ensemble.copula_floor_required_p(epsilon, correlation)
    return np.maximum(np.log(risk_0 / required) / -np.log(gamma), 0)[()]


def cheapest(
    epsilon: float,
    rule: str = "majority",
    *,
    risk_0: float,
    gamma: float,
    step_cost: float,
    member_cost: float,
    paid: str = "every",
    widths=None,
    model: str = "independent",
    correlation: float = 0.0,
) -> Design:
    """The cheapest whole numbers of members and updates on the exact frontier; the narrowest, if several cost the same.

    ``widths`` are the candidates, by default 1, 3, ..., 201. ``paid``: ``"every"`` member is trained, or training is
    paid ``"once"``.
    """
    if paid not in PAID:
        raise ValueError(f"paid must be 'every' or 'once', got {paid!r}")
    check_range("epsilon", epsilon, "(0, 1)")
    step_cost, member_cost = _costs(step_cost, member_cost)
    widths = check_count("widths", np.arange(1, 202, 2) if widths is None else widths, at_least=1)
    widths = np.atleast_1d(widths)
    steps = frontier(widths, epsilon, rule, risk_0=risk_0, gamma=gamma, model=model, correlation=correlation)
    each = step_cost * steps + member_cost
    cost = widths * each if paid == "every" else step_cost * steps + member_cost * widths
    best = int(np.argmin(cost))
    return Design(int(widths[best]), int(steps[best]), float(cost[best]))


# --- every member is trained: W (c_t n + c_i) -------------------------------------------------------------------------


def any_refusal_crossover(*, risk_0, gamma) -> np.ndarray:
    r""":math:`a/s`: where a member costs more than this many updates, one deep member is cheapest; else n = 0."""
    risk_0, gamma = _training(risk_0, gamma)
    return np.log(risk_0) / np.log(gamma)


def any_refusal_optimum(epsilon, *, risk_0, gamma, step_cost, member_cost) -> Design:
    r"""The cheaper end of :math:`W(a+sn)=E`: (1, (E-a)/s) or (E/a, 0); both ends cost the same at the crossover."""
    a, s, E, c_t, c_i = _numbers(epsilon, risk_0, gamma, step_cost, member_cost)
    deep_steps, wide_width = np.maximum((E - a) / s, 0), np.maximum(E / a, 1)
    deep, wide = c_t * deep_steps + c_i, c_i * wide_width
    return _either(wide < deep, (wide_width, np.zeros_like(a), wide), (np.ones_like(a), deep_steps, deep))


def majority_crossover(*, risk_0, gamma) -> np.ndarray:
    r""":math:`\ln\frac1{4p_0(1-p_0)}/(2s)`: what :func:`any_refusal_crossover` is for a majority, as
    :math:`\varepsilon\to0`; zero from :math:`p_0=1/2` on."""
    risk_0, gamma = _training(risk_0, gamma)
    return (_sharp_exponent(np.minimum(risk_0, 0.5)) / (-2 * np.log(gamma)))[()]


def majority_optimum(epsilon, *, risk_0, gamma, step_cost, member_cost) -> Design:
    r"""The cheaper end for an independent majority: one member with :math:`p=\varepsilon`, or
    :math:`W_0=2E/\ln\frac1{4p_0(1-p_0)}` untrained ones."""
    a, s, E, c_t, c_i = _numbers(epsilon, risk_0, gamma, step_cost, member_cost)
    deep_steps = np.maximum((E - a) / s, 0)
    with np.errstate(divide="ignore"):
        wide_width = np.maximum(2 * E / _sharp_exponent(np.minimum(np.exp(-a), 0.5)), 1)
    deep, wide = c_t * deep_steps + c_i, c_i * wide_width
    return _either(wide < deep, (wide_width, np.zeros_like(a), wide), (np.ones_like(a), deep_steps, deep))


def hoeffding_optimum(epsilon, *, risk_0, gamma, step_cost, member_cost) -> Design:
    r"""The cheapest design that Proposition 4.11's majority bound certifies: :math:`W=E/(2(1/2-p)^2)`, with

    .. math:: n^* = \frac{y-1}{2s}-c, \qquad y = -2W_{-1}\!\left(-\frac{e^{-1/2-sc}}{4p_0}\right), \qquad c=c_i/c_t,

    or no training where that costs less, or where there is no such y.
    """
    a, s, E, c_t, c_i = _numbers(epsilon, risk_0, gamma, step_cost, member_cost)
    p_0, c = np.exp(-a), c_i / c_t
    argument = -np.exp(-0.5 - s * c) / (4 * p_0)
    stationary = argument >= -np.exp(-1)
    y = -2 * lambertw(np.where(stationary, argument, -np.exp(-1)), -1).real
    inside = np.where(stationary, (y - 1) / (2 * s) - c, 0)

    def design(steps):
        room = 0.5 - p_0 * np.exp(-s * steps)
        with np.errstate(divide="ignore"):
            width = np.where(room > 0, np.maximum(E / (2 * room**2), 1), np.inf)
        return width, steps, width * (c_t * steps + c_i)

    trained, untrained = design(np.maximum(inside, 0)), design(np.zeros_like(inside))
    return _either(trained[2] < untrained[2], trained, untrained)


def cross_entropy_optimum(epsilon, *, risk_0, rate, step_cost, member_cost) -> Design:
    r"""One refusal is enough, and training follows :math:`p_0/(1+\eta n)` (``rate`` :math:`\eta`): the tangent point

    .. math:: k = \frac{c_i\eta}{c_t}-1, \quad u^* = \frac{k}{W_0(k/(ep_0))}, \quad n^* = \frac{u^*-1}{\eta}, \quad
              W^* = \frac{E}{1+k/u^*},

    no training where :math:`u^*\le1`, one member where :math:`W^*\le1`.
    """
    a, _, E, c_t, c_i = _numbers(epsilon, risk_0, 0.5, step_cost, member_cost)
    rate = check_range("rate", rate, "(0, inf)")
    a, E, c_t, c_i, rate = np.broadcast_arrays(a, E, c_t, c_i, rate)
    p_0, k = np.exp(-a), c_i * rate / c_t - 1
    flat = np.abs(k) < 1e-12  # u* tends to e p_0
    argument = np.maximum(np.where(flat, 1, k) / (np.e * p_0), -np.exp(-1))
    u = np.where(flat, np.e * p_0, np.where(flat, 1, k) / lambertw(argument, 0).real)
    u = np.where(k < -p_0, 1, np.maximum(u, 1))
    alone = np.maximum(p_0 * np.exp(E), 1)  # the u at which one member is enough
    u = np.minimum(u, alone)
    width = np.maximum(E / np.log(u / p_0), 1)
    steps = (u - 1) / rate
    return Design(width[()], steps[()], (width * (c_t * steps + c_i))[()])


# --- trained once: c_t n + c_i W --------------------------------------------------------------------------------------


def trained_once_optimum(epsilon, rule: str = "any-refusal", *, risk_0, gamma, step_cost, member_cost) -> Design:
    r"""Training is paid once: :math:`W^*=\sqrt{c_tE/(sc_i)}`, :math:`n^*=(E/W^*-a)/s`, within
    :math:`1\le W\le E/a`.

    For ``"majority"`` with small p, where the exponent :math:`\ln\frac1{4p}` stands for :math:`\ln\frac1{4p(1-p)}`:
    twice E and :math:`a-\ln4` for a, an approximation.
    """
    a, s, E, c_t, c_i = _numbers(epsilon, risk_0, gamma, step_cost, member_cost)
    if rule not in ("any-refusal", "majority"):
        raise ValueError(f"rule must be 'any-refusal' or 'majority', got {rule!r}")
    if rule == "majority":
        E, a = 2 * E, a - np.log(4)
    with np.errstate(divide="ignore"):
        widest = np.where(a > 0, np.maximum(E / np.where(a > 0, a, 1), 1), np.inf)
    width = np.clip(np.sqrt(c_t * E / (s * c_i)), 1, widest)
    steps = np.maximum((E / width - a) / s, 0)
    return Design(width[()], steps[()], (c_t * steps + c_i * width)[()])


def least_risk(budget, *, risk_0, gamma, step_cost, member_cost) -> Budget:
    r"""What a budget C buys, one refusal being enough and training paid once:
    :math:`\varepsilon^*=\exp\big(-\frac{s(C+ac_t/s)^2}{4c_ic_t}\big)`.

    Then :math:`W=(C+ac_t/s)/(2c_i)` and :math:`n=(C-ac_t/s)/(2c_t)`; no training where that is negative, one member
    where W would be less. The budget has to pay for one member.
    """
    a, s, _, c_t, c_i = _numbers(0.5, risk_0, gamma, step_cost, member_cost)
    budget = check_range("budget", budget, "(0, inf)")
    if (budget < c_i).any():
        raise ValueError(f"budget must pay for one member, got {np.min(budget):g}")
    steps = np.clip((budget - a * c_t / s) / (2 * c_t), 0, (budget - c_i) / c_t)
    width = (budget - c_t * steps) / c_i
    return Budget(np.exp(-width * (a + s * steps))[()], width[()], steps[()])


# --- arguments --------------------------------------------------------------------------------------------------------


def _sharp_exponent(p):
    """ln(1 / (4 p (1 - p))), twice the divergence of a fair coin from one with risk p."""
    return -np.log1p(-((1 - 2 * p) ** 2))


def _either(first_is_cheaper, first, second) -> Design:
    return Design(*(np.where(first_is_cheaper, x, y)[()] for x, y in zip(first, second, strict=True)))


def _training(risk_0, gamma):
    return check_range("risk_0", risk_0, "(0, 1)"), check_range("gamma", gamma, "(0, 1)")


def _costs(step_cost, member_cost):
    return check_range("step_cost", step_cost, "(0, inf)"), check_range("member_cost", member_cost, "(0, inf)")


def _numbers(epsilon, risk_0, gamma, step_cost, member_cost):
    """a, s, E and the two costs, of one shape."""
    epsilon = check_range("epsilon", epsilon, "(0, 1)")
    risk_0, gamma = _training(risk_0, gamma)
    return np.broadcast_arrays(-np.log(risk_0), -np.log(gamma), -np.log(epsilon), *_costs(step_cost, member_cost))
