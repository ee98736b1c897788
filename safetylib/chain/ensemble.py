r"""Ensembles: what a vote of W members does to the risk of one.

**Setting.** Members :math:`1, \dots, W` each give a harmful output to a prompt with probability :math:`p`;
:math:`X_i` is 1 if member i does, and :math:`S = X_1 + \dots + X_W`. A voting rule is a **quorum** m: the
ensemble is unsafe iff at least m members are harmful, so its *risk* is :math:`P(S \ge m)`.

================== ============================ ===========================================
rule               m                            the ensemble is safe iff
================== ============================ ===========================================
any-harmful        1                            every member is safe
majority           :math:`\lceil W/2\rceil`     more than half are safe (a tie is unsafe)
majority-ties-safe :math:`\lfloor W/2\rfloor+1` at least half are safe
average            :math:`\lceil\tau W\rceil`   the mean of the 0/1 harm scores is below tau
any-refusal        W                            some member is safe
================== ============================ ===========================================

**Facts**, with :math:`E = \ln(1/\varepsilon)`:

* *Any joint law.* :math:`\max(0, \frac{Wp-m+1}{W-m+1}) \le P(S\ge m) \le \min(1, Wp/m)`, and both ends are
  attained. For m = 1 the upper one is the union bound: :math:`p \le \varepsilon/W`.
* *Independent members.* :math:`P(S\ge m) = I_p(m, W-m+1)`, the regularised incomplete beta function.
* *Majority, independent, either tie rule.* :math:`P(S\ge m) \le (4p(1-p))^{W/2} \le e^{-2W(1/2-p)^2}` for
  :math:`p \le 1/2`. Solved for p: :math:`(1-\sqrt{1-\varepsilon^{2/W}})/2`, and
  :math:`1/2-\sqrt{E/(2W)}`, which is not positive, and so says nothing, iff :math:`W \le 2E`.
* *Correlated members.* Given a shared :math:`\theta`, members are independent with probability
  :math:`\theta`. As W grows a majority is right or wrong with :math:`\theta`, so the risk does not go to zero
  but to the floor :math:`P(\theta > 1/2)`.

Two laws of :math:`\theta` are offered. ``"beta-binomial"``: a beta law, where ``correlation`` is the correlation
of :math:`X_i` and :math:`X_j`. ``"copula"``: one Gaussian factor, where ``correlation`` is that of the
latent normal variables; :func:`copula_correlation` converts. All functions broadcast over their numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, expit, log_ndtr, ndtr, ndtri, owens_t

from safetylib.chain.checks import check_count, check_range

RULES = ("any-harmful", "majority", "majority-ties-safe", "average", "any-refusal")
MODELS = ("independent", "beta-binomial", "copula")
LARGEST_WIDTH = 10**6

# --- voting rules -----------------------------------------------------------------------------------------------------


def unsafe_quorum(rule: str, width, threshold=0.5) -> np.ndarray:
    """The number m of harmful members from which the ensemble is unsafe under ``rule``.

    Parameters
    ----------
    rule
        One of ``RULES``.
    width
        Number of members, at least 1.
    threshold
        For ``"average"``: the ensemble is unsafe iff the mean of 0/1 harm scores is at least this, in (0, 1].
    """
    width = check_count("width", width, at_least=1)
    threshold = check_range("threshold", threshold, "(0, 1]")
    match rule:
        case "any-harmful":
            return np.ones_like(width)[()]
        case "majority":
            return np.ceil(width / 2)[()]
        case "majority-ties-safe":
            return np.floor(width / 2)[()] + 1
        case "average":
            # 0.07 * 100 is a little more than 7 in floating point, and has to count as 7.
            return np.maximum(np.ceil(threshold * width * (1 - 4e-16)), 1)[()]
        case "any-refusal":
            return width[()]
    raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")


def unsafe_outcome(harmful, quorum) -> np.ndarray:
    """Whether the ensemble is unsafe, from votes: 0/1 array (..., W), true where a member is harmful.

    ``quorum`` is m; it broadcasts with the leading axes.
    """
    harmful = check_range("harmful", harmful, "[0, 1]")
    if not np.isin(harmful, (0, 1)).all():
        raise ValueError(f"harmful must hold zeros and ones, got {harmful[~np.isin(harmful, (0, 1))].flat[0]:g}")
    _, quorum = _votes(harmful.shape[-1], quorum)
    return harmful.sum(axis=-1) >= quorum


# --- independent members ----------------------------------------------------------------------------------------------


def independent_risk(p, width, quorum) -> np.ndarray:
    r""":math:`P(S\ge m) = I_p(m, W-m+1)` for independent members: the exact binomial tail."""
    p, (width, quorum) = check_range("p", p, "[0, 1]"), _votes(width, quorum)
    return betainc(quorum, width - quorum + 1, p)


def independent_required_p(epsilon, width, quorum) -> np.ndarray:
    """The largest p at which :func:`independent_risk` is at most ``epsilon``, exactly (``betaincinv``)."""
    epsilon, (width, quorum) = check_range("epsilon", epsilon, "[0, 1]"), _votes(width, quorum)
    return betaincinv(quorum, width - quorum + 1, epsilon)


# --- any joint law ----------------------------------------------------------------------------------------------------


class Range(NamedTuple):
    """The least and the largest risk that is possible."""

    low: np.ndarray
    high: np.ndarray


def any_joint_risk(p, width, quorum) -> Range:
    r"""What the members' risks alone allow: the range of :math:`P(S\ge m)` over all joint laws.

    :math:`\max(0, \frac{Wp-m+1}{W-m+1})` and :math:`\min(1, Wp/m)`, by Markov's inequality for
    :math:`W - S` and for :math:`S`. Both are attained, by the laws of :func:`extreme_law`. ``p`` is the
    members' mean risk; they need not be alike.
    """
    p, (width, quorum) = check_range("p", p, "[0, 1]"), _votes(width, quorum)
    low = (width * p - quorum + 1) / (width - quorum + 1)
    return Range(np.maximum(low, 0)[()], np.minimum(width * p / quorum, 1)[()])


def any_joint_required_p(epsilon, width, quorum) -> np.ndarray:
    r""":math:`\min(1, m\varepsilon/W)`: the largest p at which no joint law has a risk above ``epsilon`` < 1.

    For m = 1 it is the union bound's :math:`\varepsilon/W`.
    """
    epsilon, (width, quorum) = check_range("epsilon", epsilon, "[0, 1]"), _votes(width, quorum)
    return np.where(epsilon < 1, quorum * epsilon / width, 1.0)[()]


def extreme_law(p: float, width: int, quorum: int, end: str = "high") -> np.ndarray:
    """The law of S, (W + 1,), at an end of :func:`any_joint_risk`; members are drawn at random given S.

    The mean of S is W p, as it has to be; at most two values of S have positive probability.
    """
    check_range("p", p, "[0, 1]")
    width, quorum = (int(number) for number in _votes(width, quorum))
    if end not in ("low", "high"):
        raise ValueError(f"end must be 'low' or 'high', got {end!r}")
    mean, cut = width * p, quorum if end == "high" else quorum - 1
    below, above = (0, cut) if mean <= cut else (cut, width)
    law = np.zeros(width + 1)
    law[above] = (mean - below) / (above - below) if above > below else 1
    law[below] += 1 - law[above] if above > below else 0
    return law


# --- bounds for means of independent scores ---------------------------------------------------------------------------


def hoeffding_risk(p, width, threshold=0.5) -> np.ndarray:
    r""":math:`e^{-2W(\tau-p)^2}`, a bound on P(mean of W independent scores in [0, 1] reaches tau), 1 for
    :math:`p \ge \tau`."""
    p, width, threshold = _scores(p, width, threshold)
    return np.exp(-2 * width * np.maximum(threshold - p, 0) ** 2)


def hoeffding_required_p(epsilon, width, threshold=0.5) -> np.ndarray:
    r""":math:`\tau-\sqrt{E/(2W)}`: Proposition 4.11's requirement for a majority, at :math:`\tau = 1/2`.

    Not positive, and then no p meets it, iff :math:`W \le E/(2\tau^2)`.
    """
    _, width, threshold = _scores(0, width, threshold)
    epsilon = check_range("epsilon", epsilon, "(0, 1]")
    return threshold - np.sqrt(-np.log(epsilon) / (2 * width))


def kl_risk(p, width, threshold=0.5) -> np.ndarray:
    r""":math:`e^{-W\,\mathrm{KL}(\tau\|p)}`, Chernoff's bound; never above :func:`hoeffding_risk`, 1 for
    :math:`p\ge\tau`.

    At :math:`\tau=1/2` it is :math:`(4p(1-p))^{W/2}` and holds for a majority under either tie rule.
    """
    p, width, threshold = _scores(p, width, threshold)
    return np.exp(-width * np.where(p < threshold, _divergence(threshold, p), 0))[()]


def kl_required_p(epsilon, width, threshold=0.5) -> np.ndarray:
    r"""The largest :math:`p\le\tau` at which :func:`kl_risk` is at most ``epsilon`` < 1; always positive.

    At :math:`\tau=1/2` in closed form, :math:`(1-\sqrt{1-\varepsilon^{2/W}})/2`; else by bisection.
    """
    _, width, threshold = _scores(0, width, threshold)
    epsilon = check_range("epsilon", epsilon, "(0, 1]")
    needed, threshold = np.broadcast_arrays(-np.log(epsilon) / width, threshold)
    closed = np.exp(-2 * needed) / (2 * (1 + np.sqrt(-np.expm1(-2 * needed))))  # no difference of near equals
    if (threshold == 0.5).all():
        return closed[()]
    low, high = np.full(needed.shape, -700.0), np.log(threshold)
    for _ in range(80):
        middle = (low + high) / 2
        far = _divergence(threshold, np.exp(middle)) >= needed
        low, high = np.where(far, middle, low), np.where(far, high, middle)
    return np.where(threshold == 0.5, closed, np.exp(low))[()]


def hoeffding_vacuous_width(epsilon) -> np.ndarray:
    r""":math:`2\ln(1/\varepsilon)`: up to this width Proposition 4.11's majority bound admits no positive p."""
    return -2 * np.log(check_range("epsilon", epsilon, "(0, 1]"))


def _divergence(q, p) -> np.ndarray:
    """KL(q || p) between coins; infinite where p is 0 or 1 and q is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heads = np.where(q > 0, q * np.log(q / p), 0)
        tails = np.where(q < 1, (1 - q) * (np.log1p(-q) - np.log1p(-p)), 0)
    return heads + tails


# --- correlated members -----------------------------------------------------------------------------------------------


def beta_binomial_risk(p, width, quorum, correlation) -> np.ndarray:
    r""":math:`P(S\ge m)` where members share :math:`\theta\sim\mathrm{Beta}(a,b)`,
    :math:`a=p(1-\rho)/\rho`, :math:`b=(1-p)(1-\rho)/\rho`.

    ``correlation`` :math:`\rho` is that of two members' indicators. The probabilities are those of Pólya's urn,
    multiplied up from S = 0 in logarithms, so that a correlation of 0 (independent) or 1 (identical members) needs
    no limit and small tails keep their digits. Time proportional to W.
    """
    p, (width, quorum) = check_range("p", p, "[0, 1]"), _votes(width, quorum)
    return _urn_tail(p, width, quorum, check_range("correlation", correlation, "[0, 1]"))[()]


def beta_binomial_floor(p, correlation, threshold=0.5) -> np.ndarray:
    r"""The majority's risk as W grows: :math:`P(\theta>\tau) = I_{1-\tau}(b,a)`, :math:`\tau=1/2` for a majority.

    At correlation 0: zero, or one for p above the threshold, or one half at it.
    """
    p, correlation, threshold = _factor(p, correlation, threshold)
    inside = (p > 0) & (p < 1) & (correlation > 0) & (correlation < 1)
    rho, q = np.where(inside, correlation, 0.5), np.where(inside, p, 0.5)
    floor = betainc((1 - q) * (1 - rho) / rho, q * (1 - rho) / rho, 1 - threshold)
    return np.where(inside, floor, _degenerate_floor(p, correlation, threshold))[()]


def copula_risk(p, width, quorum, correlation) -> np.ndarray:
    r""":math:`\int I_{p(z)}(m, W-m+1)\,\varphi(z)\,dz` with
    :math:`p(z)=\Phi\big((\Phi^{-1}(p)-\sqrt\rho z)/\sqrt{1-\rho}\big)`: one-factor Gaussian copula.

    Member i is harmful iff :math:`\sqrt\rho Z+\sqrt{1-\rho}\,\xi_i < \Phi^{-1}(p)` with standard normal Z,
    :math:`\xi_i`; ``correlation`` :math:`\rho` is the latent one. Trapezoids on [-8.5, 8.5], with
    nodes close enough for the step that :math:`I_{p(z)}` becomes as W grows; what lies outside is below
    1e-16, so the error is about that, absolutely.
    """
    p, (width, quorum) = check_range("p", p, "[0, 1]"), _votes(width, quorum)
    return _copula_tail(p, width, quorum, check_range("correlation", correlation, "[0, 1]"))[()]


def copula_floor(p, correlation, threshold=0.5) -> np.ndarray:
    r"""The majority's risk as W grows: :math:`\Phi(\Phi^{-1}(p)/\sqrt\rho)`; in general
    :math:`\Phi((\Phi^{-1}(p)-\sqrt{1-\rho}\,\Phi^{-1}(\tau))/\sqrt\rho)`."""
    p, correlation, threshold = _factor(p, correlation, threshold)
    inside = (p > 0) & (p < 1) & (correlation > 0) & (correlation < 1)
    rho = np.where(inside, correlation, 0.5)
    shift = ndtri(np.where(inside, p, 0.5)) - np.sqrt(1 - rho) * ndtri(threshold)
    return np.where(inside, ndtr(shift / np.sqrt(rho)), _degenerate_floor(p, correlation, threshold))[()]


def copula_floor_required_p(epsilon, correlation, threshold=0.5) -> np.ndarray:
    r""":math:`\Phi(\sqrt\rho\,\Phi^{-1}(\varepsilon)+\sqrt{1-\rho}\,\Phi^{-1}(\tau))`: with a larger p
    (below 1/2) no odd width, and none with ties unsafe, brings a majority's risk down to ``epsilon``."""
    epsilon = check_range("epsilon", epsilon, "(0, 1)")
    _, rho, threshold = _factor(0, correlation, threshold)
    return ndtr(np.sqrt(rho) * ndtri(epsilon) + np.sqrt(1 - rho) * ndtri(threshold))


def copula_correlation(p, correlation) -> np.ndarray:
    r"""The correlation of two members' indicators: :math:`(\Phi_2(x,x;\rho)-p^2)/(p(1-p))`,
    :math:`x=\Phi^{-1}(p)`; ``correlation`` :math:`\rho` is the latent one."""
    p, rho = check_range("p", p, "(0, 1)"), check_range("correlation", correlation, "[0, 1]")
    x = ndtri(p)
    both = p - 2 * owens_t(x, np.sqrt((1 - rho) / (1 + rho)))
    return np.where(rho == 0, 0.0, (both - p**2) / (p * (1 - p)))[()]


@np.vectorize(otypes=[float])
def _urn_tail(p, width, quorum, rho) -> float:
    if rho == 1 or p in (0, 1):
        return p
    k = np.arange(width)
    none = np.log1p(-p * (1 - rho) / (1 - rho + k * rho)).sum()
    grow = p * (1 - rho) + k * rho
    fail = (1 - p) * (1 - rho) + (width - 1 - k) * rho
    logs = none + np.cumsum(np.log(width - k) - np.log(k + 1) + np.log(grow) - np.log(fail))
    return min(float(np.exp(logs[int(quorum) - 1 :]).sum()), 1.0)


@np.vectorize(otypes=[float])
def _copula_tail(p, width, quorum, rho) -> float:
    if rho == 1 or p in (0, 1):
        return p
    if rho == 0:
        return float(betainc(quorum, width - quorum + 1, p))
    # In z the tail rises over about the spread of S/W where p(z) = m/W; trapezoids converge exponentially below it.
    share = np.clip(quorum / width, 0.5 / width, 1 - 0.5 / width)
    x = ndtri(share)
    spread = np.sqrt(share * (1 - share) / width) * np.sqrt(2 * np.pi) * np.exp(x * x / 2) * np.sqrt((1 - rho) / rho)
    nodes = int(min(17 / min(0.05, spread / 2), 400_000)) + 2
    z = np.linspace(-8.5, 8.5, nodes)
    given = np.exp(log_ndtr((ndtri(p) - np.sqrt(rho) * z) / np.sqrt(1 - rho)))
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return min(float(trapezoid(betainc(quorum, width - quorum + 1, given) * density, z)), 1.0)


def _degenerate_floor(p, correlation, threshold):
    """Floors where theta has no spread: all members alike, or independent ones."""
    independent = np.where(p > threshold, 1.0, np.where(p == threshold, 0.5, 0.0))
    return np.where((correlation == 1) | (p == 0) | (p == 1), p, independent)


# --- one door to all models -------------------------------------------------------------------------------------------


def risk(p, width, quorum, *, model: str = "independent", correlation=0.0) -> np.ndarray:
    """:math:`P(S\\ge m)` under one of ``MODELS``; ``correlation`` as that model defines it."""
    _check_model(model, correlation)
    match model:
        case "independent":
            return independent_risk(p, width, quorum)
        case "beta-binomial":
            return beta_binomial_risk(p, width, quorum, correlation)
        case _:
            return copula_risk(p, width, quorum, correlation)


def required_p(epsilon, width, quorum, *, model: str = "independent", correlation=0.0) -> np.ndarray:
    """The largest p at which the ensemble's risk is at most ``epsilon``; the risk rises with p in every model."""
    _check_model(model, correlation)
    epsilon, (width, quorum) = check_range("epsilon", epsilon, "[0, 1]"), _votes(width, quorum)
    if model == "independent":
        return independent_required_p(epsilon, width, quorum)
    return np.vectorize(_solve_for_p, otypes=[float])(epsilon, width, quorum, model, correlation)[()]


def required_width(epsilon, p, rule: str, *, model: str = "independent", correlation=0.0) -> np.ndarray:
    """The smallest width at which the ensemble's risk under ``rule`` is at most ``epsilon``.

    For a majority it is odd, or even or 1 where ties are safe: the next width of the other parity has a larger risk
    and may miss ``epsilon`` again. Under ``"any-harmful"`` width never helps: 1 or infinite.

    Returns
    -------
    ndarray
        Infinite where no width will do. In the correlated models, nan where more than ``LARGEST_WIDTH`` members are
        needed.
    """
    if rule not in RULES or rule == "average":
        raise ValueError(f"rule must be one of any-harmful, majority, majority-ties-safe, any-refusal, got {rule!r}")
    _check_model(model, correlation)
    epsilon, p = check_range("epsilon", epsilon, "[0, 1]"), check_range("p", p, "[0, 1]")
    return np.vectorize(_search_width, otypes=[float])(epsilon, p, rule, model, correlation)[()]


def _solve_for_p(epsilon, width, quorum, model, correlation) -> float:
    if epsilon in (0, 1) or correlation == 1:
        return epsilon

    def excess(log_odds):
        value = risk(expit(log_odds), width, quorum, model=model, correlation=correlation)
        return np.log(max(value, 1e-320)) - np.log(epsilon)

    low, high = -700.0, 36.0
    return float(expit(brentq(excess, low, high, xtol=1e-11))) if excess(high) > 0 else 1.0


def _search_width(epsilon, p, rule, model, correlation) -> float:
    def enough(width):
        quorum = unsafe_quorum(rule, width)
        return risk(p, width, quorum, model=model, correlation=correlation) <= epsilon

    early = 2 if rule in ("any-refusal", "majority-ties-safe") else 1
    for width in range(1, early + 1):
        if enough(width):
            return width
    if rule == "any-harmful" or _limit(p, rule, model, correlation) >= epsilon:
        return np.inf
    step, offset = (1, 0) if rule == "any-refusal" else (2, 0 if rule == "majority-ties-safe" else 1)
    largest = 2**52 if model == "independent" else LARGEST_WIDTH
    low, high = 0, 2
    while not enough(step * high + offset):
        low, high = high, 2 * high
        if step * high + offset > largest:
            return np.nan
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(step * middle + offset) else (middle, high)
    return step * high + offset


def _limit(p, rule, model, correlation) -> float:
    """The risk of a wide majority, or of a wide any-refusal vote."""
    if rule == "any-refusal":
        return p if correlation == 1 or p == 1 else 0.0
    floor = copula_floor if model == "copula" else beta_binomial_floor
    return max(floor(p, correlation), p if p >= 0.5 else 0)


# --- width in other units ---------------------------------------------------------------------------------------------


def effective_width(width, correlation) -> np.ndarray:
    r""":math:`W/(1+(W-1)\rho)`: so many independent members have the same variance of S/W; at most
    :math:`1/\rho`.

    It describes the variance. For the tail that a majority risks it promises too much: use
    :func:`risk_equivalent_width`.
    """
    width, rho = check_count("width", width, at_least=1), check_range("correlation", correlation, "[0, 1]")
    return width / (1 + (width - 1) * rho)


def risk_equivalent_width(majority_risk, p) -> np.ndarray:
    r"""The real :math:`W_r` with :math:`I_p(\frac{W_r+1}2,\frac{W_r+1}2)` = ``majority_risk``: so many independent
    members would do as well.

    Parameters
    ----------
    majority_risk
        The risk of a majority, in (0, p].
    p
        Risk of a member, in (0, 1/2).
    """
    p = check_range("p", p, "(0, 0.5)")
    majority_risk, p = np.broadcast_arrays(check_range("majority_risk", majority_risk, "(0, 0.5)"), p)
    if (majority_risk > p * (1 + 1e-12)).any():
        worst = majority_risk[majority_risk > p].flat[0]
        raise ValueError(f"majority_risk must not exceed p, got {worst:g}")
    low, high = np.zeros(p.shape), np.full(p.shape, 60.0)  # logarithms of half of W_r + 1
    for _ in range(70):
        middle = (low + high) / 2
        above = betainc(np.exp(middle), np.exp(middle), p) > majority_risk
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (2 * np.exp((low + high) / 2) - 1)[()]


# --- arguments --------------------------------------------------------------------------------------------------------


def _votes(width, quorum) -> tuple[np.ndarray, np.ndarray]:
    width, quorum = check_count("width", width, at_least=1), check_count("quorum", quorum, at_least=1)
    width, quorum = np.broadcast_arrays(width, quorum)
    if (quorum > width).any():
        raise ValueError(f"quorum must not exceed width, got {quorum[quorum > width].flat[0]:g}")
    return width, quorum


def _scores(p, width, threshold):
    return (
        check_range("p", p, "[0, 1]"),
        check_count("width", width, at_least=1),
        check_range("threshold", threshold, "(0, 1]"),
    )


def _factor(p, correlation, threshold):
    return np.broadcast_arrays(
        check_range("p", p, "[0, 1]"),
        check_range("correlation", correlation, "[0, 1]"),
        check_range("threshold", threshold, "(0, 1)"),
    )


def _check_model(model, correlation) -> None:
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    correlation = check_range("correlation", correlation, "[0, 1]")
    if model == "independent" and (correlation != 0).any():
        raise ValueError(
            f"correlation must be 0 for independent members, got {correlation[correlation != 0].flat[0]:g}"
        )
