r"""How a transition matrix changes when training pulls it towards a refusal state.

**Setting.** A row-stochastic :math:`Q_0`, a refusal state :math:`r` with escape probability
:math:`e_0 = 1 - Q_0(r,r) > 0`, a bias matrix :math:`B` with :math:`b = B(r,r) > 0`, a learning rate
:math:`\alpha`, a discount :math:`0 < \gamma \le 1`. The update at time :math:`t` has step size :math:`c_t =
\alpha\gamma^t`. Throughout, :math:`n` **counts the updates applied** (:math:`t = 0, \dots, n-1`) and

.. math:: S_n = \sum_{t<n} \gamma^t = \frac{1-\gamma^n}{1-\gamma}, \qquad
          \kappa = \frac{\alpha b}{(1-\gamma)\,e_0} \quad\text{(the bias in store, over the bias needed).}

The summary of the paper writes :math:`T` with a tail :math:`\gamma^{T+1}/(1-\gamma)`; so :math:`n = T + 1`.

**Facts** on :math:`e_n = 1 - Q_n(r,r)`:

* *Additive.* :math:`e_n = e_0(1-\kappa(1-\gamma^n))`; at most :math:`\delta` for some n iff
  :math:`\kappa > 1-\delta/e_0`.
* *Clip and normalise, B proportional to the pull* :math:`\mathbf 1_r - Q_0(r,\cdot)`. The same, but 0 once it
  would be negative.
* *Clip and normalise, B diagonal.* :math:`e_n = e_0/\prod_{t<n}(1+bc_t)`; iff the infinite product exceeds
  :math:`e_0/\delta`. With a clip at one besides, :math:`e_n \ge e_0/(1+e_0n)` for every learning rate, so
  :math:`n \ge 1/\delta-1/e_0`.
* *Softmax, equal gaps* :math:`\Delta`. The logit of :math:`1-e_n` is linear in :math:`S_n`; iff
  :math:`\alpha\Delta/(1-\gamma) > \Lambda`, the shift that is needed.
* *Cross-entropy, as a flow.* :math:`1/e_n - 1` is Wright's omega of a clock that runs at rate 2; about
  :math:`1/(2\alpha\delta)` steps.
* *Mixing.* :math:`e_n = e_0\prod_{t<n}(1-c_t)`; iff the infinite product is below :math:`\delta/e_0`.

For :math:`\gamma = 1` the thresholds vanish. Additive, softmax and cross-entropy all ask the same question,
how many discounted steps make a given sum :math:`S_n`; :func:`steps_to_sum` answers it. The two diagonal
rules and mixing run on the q-Pochhammer product, :func:`log_pochhammer`. No closed form loops over :math:`n`,
and ``n = inf`` gives the limit, which is the floor below which no :math:`\delta` is ever met.

Mixing and cross-entropy use the same direction, :math:`\mathbf 1_r - Q_t(r,\cdot)`: the one adds it to the
probabilities, the other to the logits.

Functions on probabilities broadcast their arguments; functions on matrices take one matrix.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable

import numpy as np
from scipy.special import expit, lambertw, logit, spence, wrightomega

from safetylib.chain.checks import (
    ROW_SUM_TOLERANCE,
    as_written,
    check_count,
    check_range,
    check_square,
    check_states,
    check_transition_matrix,
)

# --- one update of a whole matrix ---------------------------------------------------------------------------


def additive_step(matrix, bias, step: float) -> np.ndarray:
    """``matrix + step * bias``, not projected: the summary's update rule taken literally.

    Rows keep their sums if the bias has zero row sums; entries may leave [0, 1].
    """
    matrix, bias = check_square("matrix", matrix, dense=True), check_square("bias", bias, dense=True)
    if matrix.shape != bias.shape:
        raise ValueError(f"bias must have the shape of matrix {matrix.shape}, got {bias.shape}")
    return matrix + check_range("step", step, "[0, inf)") * bias


def project(matrix, *, upper: bool = True, order: str = "clip-normalise") -> np.ndarray:
    """Clip to [0, 1] and divide rows by their sums: Algorithm 1's projection, as reconstructed.

    Parameters
    ----------
    matrix
        (n, n) array.
    upper
        Whether to clip at one as well as at zero.
    order
        ``"clip-normalise"``, or ``"normalise-clip"``, whose rows need not sum to one afterwards.

    Raises
    ------
    ValueError
        If a row that is to be normalised has no positive sum.
    """
    if order not in ("clip-normalise", "normalise-clip"):
        raise ValueError(f"order must be 'clip-normalise' or 'normalise-clip', got {order!r}")
    matrix = check_square("matrix", matrix, dense=True)
    if order == "clip-normalise":
        return _normalised(np.clip(matrix, 0, 1 if upper else None))
    return np.clip(_normalised(matrix), 0, 1 if upper else None)


def projected_step(matrix, bias, step: float, *, upper: bool = True, order: str = "clip-normalise") -> np.ndarray:
    """One step of Algorithm 1 as reconstructed: :func:`additive_step`, then :func:`project`."""
    return project(additive_step(matrix, bias, step), upper=upper, order=order)


def softmax_step(matrix, bias, step: float) -> np.ndarray:
    """Add ``step * bias`` to the logits: entries times ``exp(step * bias)``, rows normalised.

    Zeros stay zeros.
    """
    matrix = check_transition_matrix("matrix", matrix, dense=True)
    exponent = additive_step(np.zeros_like(matrix), bias, step)
    supported = np.where(matrix > 0, exponent, -np.inf)
    return _normalised(matrix * np.exp(supported - supported.max(axis=1, keepdims=True)))


def mixing_step(matrix, state: int, step: float) -> np.ndarray:
    """Move the row of ``state`` the fraction ``step`` of the way to the point mass on ``state``."""
    check_range("step", step, "[0, 1]")
    return additive_step(matrix, pull(matrix, state), step)


def cross_entropy_step(matrix, state: int, step: float) -> np.ndarray:
    """One gradient step of size ``step`` on the loss ``-ln Q(state, state)``, in the logits of that row."""
    return softmax_step(matrix, pull(matrix, state), step)


def pull(matrix, state: int) -> np.ndarray:
    r"""The bias proportional to what is missing: :math:`\mathbf 1_r - Q(r,\cdot)` in row r, zero elsewhere."""
    matrix = check_transition_matrix("matrix", matrix, dense=True)
    (state,) = check_states("state", state, len(matrix))
    bias = np.zeros_like(matrix)
    bias[state] = -matrix[state]
    bias[state, state] += 1
    return bias


def iterate(step_rule: Callable[[np.ndarray, float], np.ndarray], matrix, *, alpha: float, gamma: float, n: int):
    """Yield :math:`Q_0, ..., Q_n` under ``step_rule(matrix, alpha * gamma**t)``."""
    check_range("alpha", alpha, "[0, inf)")
    check_range("gamma", gamma, "(0, 1]")
    check_count("n", n)
    yield (current := check_square("matrix", matrix, dense=True))
    for t in range(int(n)):
        yield (current := step_rule(current, alpha * gamma**t))


def _normalised(matrix: np.ndarray) -> np.ndarray:
    sums = matrix.sum(axis=1, keepdims=True)
    if (sums <= 0).any():
        row = int(np.argmin(sums))
        raise ValueError(f"matrix must have rows with a positive sum, got row {row} with sum {sums[row, 0]:g}")
    return matrix / sums


# --- discounted sums and products ---------------------------------------------------------------------------


def discount_sum(n, gamma) -> np.ndarray:
    r""":math:`S_n = \sum_{t<n}\gamma^t`; ``n`` may be infinite."""
    return _discount_sum(check_count("n", n, infinite=True), check_range("gamma", gamma, "(0, 1]"))


def _discount_sum(n, gamma) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gamma < 1, -np.expm1(n * np.log(gamma)) / (1 - gamma), n)[()]


def steps_to_sum(needed, gamma) -> np.ndarray:
    r"""The smallest n with :math:`S_n \ge` ``needed``; infinite if ``needed`` :math:`\ge 1/(1-\gamma)`."""
    needed, gamma = check_range("needed", needed, "[-inf, inf]"), check_range("gamma", gamma, "(0, 1]")
    return np.ceil(np.maximum(_real_steps(needed, gamma), 0))[()]


def log_pochhammer(x, gamma, n) -> np.ndarray:
    r""":math:`\ln(-x;\gamma)_n = \sum_{t<n}\ln(1+x\gamma^t)` for :math:`x \ge -1`; ``n`` may be infinite.

    The first 512 terms are summed, the rest by Euler and Maclaurin with the dilogarithm:
    :math:`\int \ln(1+x\gamma^t)\,dt = \mathrm{Li}_2(-x\gamma^t)/\ln(1/\gamma)`. Relative error about 1e-12.
    """
    x, gamma = check_range("x", x, "[-1, inf)"), check_range("gamma", gamma, "(0, 1]")
    x, gamma, n = np.broadcast_arrays(x, gamma, check_count("n", n, infinite=True))
    head = np.minimum(n, 512)
    t = np.arange(head.max(initial=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.log1p(x[..., None] * gamma[..., None] ** t)
        total = np.where(t < head[..., None], terms, 0).sum(axis=-1)
        constant = np.where(x == 0, 0, (n - head) * np.log1p(x))
        tail = np.where(gamma < 1, _euler_maclaurin(x * gamma**n, x * gamma**head, -np.log(gamma)), constant)
    return np.where(n > head, total + tail, total)[()]


def _euler_maclaurin(end, start, rate):
    """The sum of ln(1 + y) over y = start, start * exp(-rate), ... down to and without ``end``."""

    def odd_derivatives(y):
        s = y / (1 + y)
        slope = s * (1 - s)
        third = slope * (1 - 2 * s)
        return -s * rate / 12 + third * rate**3 / 720 - third * (1 - 12 * slope) * rate**5 / 30240

    integral = (_dilogarithm(end) - _dilogarithm(start)) / rate
    return integral + (np.log1p(start) - np.log1p(end)) / 2 + odd_derivatives(end) - odd_derivatives(start)


def _dilogarithm(y):
    """Li_2(-y); by its series near zero, where 1 + y would lose digits."""
    series = y * (-1 + y * (1 / 4 + y * (-1 / 9 + y * (1 / 16 - y / 25))))
    return np.where(np.abs(y) < 1e-3, series, spence(1 + y))


def first_step(escape: Callable[[np.ndarray], np.ndarray], delta) -> np.ndarray:
    """The smallest n with ``escape(n) <= delta``, for an escape probability that never rises with n.

    By doubling and bisection, so about 2 log2(n) evaluations. A value within 1e-12 of ``delta``, relatively,
    counts as reached after finitely many steps; the limit has to lie strictly below ``delta``, else the
    answer is infinite.

    Parameters
    ----------
    escape
        Maps an array of step counts (infinity included) to escape probabilities.
    delta
        Tolerated escape probability, of the shape of ``escape``'s results.
    """
    delta = check_range("delta", delta, "[0, 1]")
    limit, delta = np.broadcast_arrays(escape(np.inf), delta)
    never = (limit >= delta * (1 - 1e-12)) & (escape(0) > delta)
    steps = _first(lambda n: never | (escape(n) <= delta * (1 + 1e-12)), delta.shape)
    return np.where(never, np.inf, steps)[()]


def _first(predicate: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The smallest n at which a predicate that never turns false again holds, elementwise; inf beyond 2**53."""
    low, high = np.full(shape, -1.0), np.zeros(shape)
    while (short := ~predicate(high) & (high < 2.0**53)).any():
        low, high = np.where(short, high, low), np.where(short, 2 * high + 1, high)
    never = ~predicate(high)
    while (high - low > 1).any():
        middle = np.ceil((low + high) / 2)
        hit = predicate(middle)
        low, high = np.where(hit, low, middle), np.where(hit, middle, high)
    return np.where(never, np.inf, high)


# --- additive rule ------------------------------------------------------------------------------------------


def budget_ratio(*, escape_0, bias, alpha, gamma) -> np.ndarray:
    r""":math:`\kappa = \alpha b/((1-\gamma)e_0)`: the bias in store over the bias needed; inf at gamma = 1."""
    escape_0, bias, alpha, gamma = _parameters(escape_0, bias, alpha, gamma)
    return _ratio(alpha * bias, (1 - gamma) * escape_0)


def tuned_alpha(*, escape_0, bias, gamma) -> np.ndarray:
    r""":math:`\alpha^* = (1-\gamma)e_0/b`, the learning rate at which :math:`\kappa = 1`."""
    escape_0, bias, _, gamma = _parameters(escape_0, bias, 1, gamma)
    return (1 - gamma) * escape_0 / bias


def additive_escape(n, *, escape_0, bias, alpha, gamma) -> np.ndarray:
    r""":math:`e_n = e_0 - \alpha b S_n = e_0(1-\kappa(1-\gamma^n))`, not projected: negative if it overshoots."""
    n = check_count("n", n, infinite=True)
    escape_0, bias, alpha, gamma = _parameters(escape_0, bias, alpha, gamma)
    store = _ratio(alpha * bias, 1 - gamma)
    # Limit plus tail keeps its digits while e_n goes to zero; e_0 less what is spent, while gamma goes to one.
    with_limit = store < 2 * escape_0
    with np.errstate(invalid="ignore"):
        escape = (escape_0 - store) + store * gamma**n
    if not with_limit.all():
        escape = np.where(with_limit, escape, escape_0 - _spent(alpha * bias, n, gamma))
    return escape[()]


def additive_steps(delta, *, escape_0, bias, alpha, gamma) -> np.ndarray:
    r"""The smallest n with :math:`e_n \le \delta`:
    :math:`\lceil\ln(1-(1-\delta/e_0)/\kappa)/\ln\gamma\rceil`; inf if none.

    It is the exact count for the additive rule, and for clip-and-normalise with a proportional bias. Where
    rounding could decide between two integers, or between an integer and never, the count is taken with 60
    digits, and each float is read as the fraction with denominator up to a million that rounds to it, if
    there is one (0.1 as 1/10).
    """
    delta = check_range("delta", delta, "[0, 1]")
    parameters = np.broadcast_arrays(delta, *_parameters(escape_0, bias, alpha, gamma))
    delta, escape_0, bias, alpha, gamma = parameters
    needed = np.where(delta < escape_0, _ratio(escape_0 - delta, alpha * bias), 0)
    real = _real_steps(needed, gamma)
    steps = np.array(np.ceil(real))
    with np.errstate(divide="ignore", invalid="ignore"):
        spent = np.minimum(needed * (1 - gamma), 1)
        # What a relative error of a few units in the last place of ``needed`` does to ``real``.
        blur = 1e-14 * (real + 1 + np.where(gamma < 1, spent / ((1 - spent) * -np.log(gamma)), 0))
        cancelled = np.abs(needed * (1 - gamma) - 1) < 1e-13 * escape_0 / np.maximum(escape_0 - delta, 1e-300)
        doubtful = np.isfinite(needed) & (needed > 0) & (~(np.abs(real - np.rint(real)) > blur) | cancelled)
    for index in map(tuple, np.argwhere(doubtful)):
        steps[index] = _additive_steps_in_decimals(*(float(value[index]) for value in parameters))
    return steps[()]


def additive_window(delta, *, escape_0, bias, alpha, gamma) -> tuple[np.ndarray, np.ndarray]:
    r"""First and last n with :math:`|e_n| \le \delta` under the unprojected rule.

    The last is infinite iff :math:`\kappa \le 1+\delta/e_0`. If the rule jumps over the window, or never gets
    there, first is inf and last is -inf.
    """
    first = additive_steps(delta, escape_0=escape_0, bias=bias, alpha=alpha, gamma=gamma)
    delta, escape_0, bias, alpha, gamma, first = np.broadcast_arrays(
        delta, *_parameters(escape_0, bias, alpha, gamma), first
    )
    spare = _ratio(escape_0 + delta, alpha * bias) * (1 + 1e-15)  # the ends of the window belong to it
    last = np.floor(_real_steps(spare, gamma) * (1 + 1e-14))
    empty = np.isinf(first) | (first > last)
    return np.where(empty, np.inf, first)[()], np.where(empty, -np.inf, last)[()]


def additive_threshold(delta, *, escape_0, bias, gamma) -> np.ndarray:
    r""":math:`(1-\gamma)(e_0-\delta)/b`: the learning rate has to be strictly above it.

    At it, delta is approached and never reached.
    """
    delta = check_range("delta", delta, "[0, 1]")
    escape_0, bias, _, gamma = _parameters(escape_0, bias, 1, gamma)
    return (1 - gamma) * np.maximum(escape_0 - delta, 0) / bias


def largest_stochastic_alpha(matrix, bias, *, gamma: float, n=np.inf) -> float:
    r"""The largest :math:`\alpha` for which :math:`Q_0,\dots,Q_n` of the additive rule are all stochastic.

    Rows of ``bias`` must sum to zero. Then all of them are stochastic iff the last one is, iff :math:`\alpha
    S_n` is at most the smallest :math:`Q_0(i,j)/|B(i,j)|` over the negative entries of the bias.
    """
    matrix, bias = check_transition_matrix("matrix", matrix, dense=True), check_square("bias", bias, dense=True)
    sums = bias.sum(axis=1)
    if np.abs(sums).max() > 1e-9 * max(1.0, np.abs(bias).max()):
        worst = int(np.argmax(np.abs(sums)))
        raise ValueError(f"bias must have rows that sum to 0, got row {worst} with sum {sums[worst]:g}")
    room = np.divide(matrix, -bias, out=np.full(matrix.shape, np.inf), where=bias < 0)
    return float(room.min() / discount_sum(n, gamma))


def _parameters(escape_0, bias, alpha, gamma):
    return (  # single numbers as such: arithmetic with them is much faster than with arrays of one
        check_range("escape_0", escape_0, "(0, 1]")[()],
        check_range("bias", bias, "(0, inf)")[()],
        check_range("alpha", alpha, "[0, inf)")[()],
        check_range("gamma", gamma, "(0, 1]")[()],
    )


def _spent(rate, n, gamma) -> np.ndarray:
    """``rate`` times S_n, which is zero for a rate of zero even if S_n is infinite."""
    return rate * np.where(rate == 0, 0, _discount_sum(n, gamma))


def _ratio(numerator, denominator) -> np.ndarray:
    """Division by what is not negative: a positive number over zero is infinite, and zero over zero is zero."""
    with np.errstate(divide="ignore"):
        return np.true_divide(numerator, denominator + (numerator == 0))


def _real_steps(needed, gamma) -> np.ndarray:
    """The real x with S_x = needed; infinite where the whole sum is not more than ``needed``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(gamma < 1, np.log1p(-needed * (1 - gamma)) / np.log(gamma), needed)
        return np.where(needed * (1 - gamma) >= 1, np.inf, x)


def _additive_steps_in_decimals(delta, escape_0, bias, alpha, gamma) -> float:
    with decimal.localcontext(prec=60) as context:
        delta, escape_0, bias, alpha, gamma = map(as_written, (delta, escape_0, bias, alpha, gamma))
        needed = (escape_0 - delta) / (alpha * bias)
        rest = 1 - needed * (1 - gamma)
        if gamma == 1:
            real = needed
        elif rest <= decimal.Decimal("1e-50"):
            return np.inf
        else:
            real = context.ln(rest) / context.ln(gamma)
        nearest = real.to_integral_value()
        return float(nearest if abs(real - nearest) < decimal.Decimal("1e-35") else np.ceil(real))


# --- the paper's bound --------------------------------------------------------------------------------------


def paper_bound(delta, gamma) -> np.ndarray:
    r"""Theorem 4.5's bound on T (as summarised): :math:`\ln(\delta(1-\gamma))/\ln\gamma - 1`; inf at gamma = 1."""
    delta, gamma = check_range("delta", delta, "(0, 1]"), check_range("gamma", gamma, "(0, 1]")
    with np.errstate(divide="ignore"):
        return np.where(gamma < 1, (np.log(delta) + np.log1p(-gamma)) / np.log(gamma) - 1, np.inf)[()]


def paper_steps(delta, gamma) -> np.ndarray:
    r"""The smallest number of updates :math:`n = T + 1` with T a whole number that satisfies
    :func:`paper_bound`.

    Equivalently :math:`\gamma^n \le \delta(1-\gamma)`: a geometric tail is at most delta. No learning rate,
    bias or starting point enters.
    """
    bound = paper_bound(delta, gamma) + 1
    with np.errstate(invalid="ignore"):
        tie = np.abs(bound - np.rint(bound)) <= 1e-12 * np.maximum(1, bound)
    return np.where(tie, np.rint(bound), np.ceil(bound))[()]


def paper_kappa(delta, *, escape_0, gamma) -> tuple[np.ndarray, np.ndarray]:
    r"""The interval of :math:`\kappa` for which every n with :math:`\gamma^n \le \delta(1-\gamma)` gives
    :math:`|e_n|\le\delta`.

    The lower end is :math:`(1-\delta/e_0)/(1-\delta(1-\gamma))`, the upper end :math:`1+\delta/e_0`; between
    them the summarised Theorem 4.5 is right.
    """
    delta = check_range("delta", delta, "(0, 1]")
    escape_0, _, _, gamma = _parameters(escape_0, 1, 1, gamma)
    return (1 - delta / escape_0) / (1 - delta * (1 - gamma)), 1 + delta / escape_0


# --- Algorithm 1: clip, then normalise ----------------------------------------------------------------------


def projected_escape(escape, removed, gained) -> np.ndarray:
    r"""One step of clip-and-normalise, seen from row r: :math:`e' = (e-R)/(1+c-R)`.

    Parameters
    ----------
    escape
        The escape probability :math:`e` before the step.
    removed
        :math:`R \le e`, the mass that the step takes off the entries beside the diagonal, after clipping at
        zero.
    gained
        :math:`c`, what the diagonal gains: :math:`bc_t`, or :math:`\min(bc_t, e)` with a clip at one.
    """
    escape, gained = check_range("escape", escape, "[0, 1]"), check_range("gained", gained, "[0, inf)")
    removed = check_range("removed", removed, "[0, 1]")
    if (removed > escape).any():
        raise ValueError(f"removed must not exceed escape, got {removed[removed > escape].flat[0]:g}")
    return (escape - removed) / (1 + gained - removed)


def proportional_escape(n, *, escape_0, bias, alpha, gamma) -> np.ndarray:
    """Clip-and-normalise with a bias proportional to the pull: the additive rule, stopped at zero."""
    return np.maximum(additive_escape(n, escape_0=escape_0, bias=bias, alpha=alpha, gamma=gamma), 0)


def diagonal_escape(n, *, escape_0, bias, alpha, gamma, upper: bool = False) -> np.ndarray:
    r"""Clip-and-normalise with a bias on the diagonal alone.

    Without a clip at one, :math:`e_n = e_0/(-\alpha b;\gamma)_n`. With it (``upper``), a step divides by
    :math:`1+\min(bc_t, e_t)`; the clip acts during one stretch of steps at most, in which :math:`1/e` grows
    by exactly one a step, with the product formula before and after.
    """
    n = check_count("n", n, infinite=True)
    escape_0, bias, alpha, gamma = _parameters(escape_0, bias, alpha, gamma)
    n, escape_0, c, gamma = np.broadcast_arrays(n, escape_0, alpha * bias, gamma)

    def product(m):
        return escape_0 * np.exp(-log_pochhammer(c, gamma, m))

    if not upper:
        return product(n)
    # c_t / e_t rises while gamma (1 + c_t) > 1 and falls afterwards: the clip sets in before that peak or
    # never. Inside the stretch c_t / e_t is log-concave, so once the clip lets go, it has let go for good.
    peak = _first(lambda m: gamma * (1 + c * gamma**m) <= 1, n.shape)
    onset = _first(lambda m: (m >= peak) | (c * gamma**m >= product(m)), n.shape)
    entry = product(onset)
    clips = c * gamma**onset >= entry
    length = _first(lambda m: ~clips | (c * gamma ** (onset + m) * (1 / entry + m) < 1), n.shape)
    inside = np.clip(n - onset, 0, length)
    rest = np.where(n > onset + length, n - np.where(np.isfinite(length), onset + length, 0), 0)
    clipped = np.exp(-log_pochhammer(c * gamma ** (onset + inside), gamma, rest)) / (1 / entry + inside)
    return np.where(clips & (n > onset), clipped, product(n))[()]


def diagonal_steps(delta, *, escape_0, bias, alpha, gamma, upper: bool = False) -> np.ndarray:
    """The smallest n at which :func:`diagonal_escape` is at most ``delta``; infinite if none."""
    delta, *parameters = np.broadcast_arrays(
        check_range("delta", delta, "[0, 1]"), *_parameters(escape_0, bias, alpha, gamma)
    )
    names = dict(zip(("escape_0", "bias", "alpha", "gamma"), parameters, strict=True))
    return first_step(lambda n: diagonal_escape(n, **names, upper=upper), delta)


def diagonal_threshold(delta, *, escape_0, bias, gamma, upper: bool = False) -> np.ndarray:
    """The learning rate above which a diagonal bias gets below ``delta`` at some step; zero at gamma = 1.

    Found by bisection on the logarithm of the learning rate, up to 1e100 (infinite beyond), to a relative
    1e-12.
    """
    delta = check_range("delta", delta, "(0, 1]")
    escape_0, bias, _, gamma = _parameters(escape_0, bias, 1, gamma)
    delta, escape_0, bias, gamma = np.broadcast_arrays(delta, escape_0, bias, gamma)

    def floor(log_alpha):
        names = {"escape_0": escape_0, "bias": bias, "alpha": np.exp(log_alpha), "gamma": gamma}
        return diagonal_escape(np.inf, **names, upper=upper)

    low, high = np.full(delta.shape, -230.0), np.full(delta.shape, 230.0)
    for _ in range(60):
        middle = (low + high) / 2
        enough = floor(middle) < delta
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    alpha = np.where(floor(high) < delta, np.exp(high), np.inf)
    return np.where((delta >= escape_0) | (gamma == 1), 0, alpha)[()]


def clipped_floor(*, escape_0, bias, alpha, gamma) -> np.ndarray:
    r"""About the floor of a diagonal bias with a clip at one, for a large learning rate: where the clip lets go.

    :math:`1/u` with :math:`u = -W_{-1}(-s\gamma^{1/e_0}/(\alpha b))/s` and :math:`s = \ln(1/\gamma)`. It falls like
    :math:`s/\ln(\alpha b)`, so the learning rate has to grow exponentially in :math:`1/\delta`.

    Raises
    ------
    ValueError
        ``gamma`` is 1, or ``alpha`` so small that the clip never acts.
    """
    escape_0, bias, alpha, gamma = _parameters(escape_0, bias, alpha, gamma)
    check_range("gamma", gamma, "(0, 1)")
    s = -np.log(gamma)
    argument = -s * gamma ** (1 / escape_0) / (alpha * bias)
    if (argument < -np.exp(-1)).any():
        raise ValueError(f"alpha must be large enough for the clip to act, got {np.min(alpha):g}")
    return -s / lambertw(argument, -1).real


def once_normalised_escape(n, *, escape_0, bias, alpha, gamma) -> np.ndarray:
    r"""A diagonal bias that is added up first, clipped at one and normalised once at the end.

    :math:`e_0/(1+\min(\alpha bS_n, e_0)) \ge e_0/(1+e_0)` for every n and every learning rate.
    """
    escape_0, bias, alpha, gamma = _parameters(escape_0, bias, alpha, gamma)
    return escape_0 / (1 + np.minimum(_spent(alpha * bias, n, gamma), escape_0))


def clip_sandwich(n, *, escape_0, bias, alpha, gamma) -> tuple[np.ndarray, np.ndarray]:
    r"""Bounds on :math:`e_n` under clip-and-normalise, no clip at one, for every way of spreading the
    negative bias.

    Holds if the row of ``bias`` sums to zero with no positive entry beside the diagonal. The lower bound
    :math:`\max(0, e_0-\alpha bS_n)` is met by a proportional bias, the upper :math:`e_0/(-\alpha b;\gamma)_n`
    by one whose negative entries stand where the row is already zero.
    """
    names = {"escape_0": escape_0, "bias": bias, "alpha": alpha, "gamma": gamma}
    return proportional_escape(n, **names), diagonal_escape(n, **names)


def harmonic_floor(n, escape_0) -> np.ndarray:
    r""":math:`e_0/(1+e_0n)`: a diagonal bias with a clip at one never gets below it, at any learning rate."""
    return check_range("escape_0", escape_0, "(0, 1]") / (1 + escape_0 * check_count("n", n))


def harmonic_steps(delta, escape_0) -> np.ndarray:
    r""":math:`\lceil 1/\delta - 1/e_0\rceil`: the least number of steps that the harmonic floor leaves room for."""
    delta, escape_0 = check_range("delta", delta, "(0, 1]"), check_range("escape_0", escape_0, "(0, 1]")
    needed = np.maximum(1 / delta - 1 / escape_0, 0)
    return np.ceil(needed * (1 - 1e-14))[()]


def neutral_floor(escape_0, neutral_share, kappa=1.0) -> np.ndarray:
    r"""A floor under clip-and-normalise where a share :math:`\nu` of the escape goes to states that the bias
    leaves alone.

    :math:`e_\infty \ge \nu e_0\exp(-e_0(\kappa-1+\nu))` for :math:`\kappa \ge 1-\nu`, whatever :math:`\gamma
    < 1`. With :math:`\nu = 1` the bias is diagonal.
    """
    escape_0, nu = (
        check_range("escape_0", escape_0, "(0, 1]"),
        check_range("neutral_share", neutral_share, "[0, 1]"),
    )
    kappa = check_range("kappa", kappa, "[0, inf)")
    if (kappa < 1 - nu).any():
        raise ValueError(f"kappa must be at least 1 - neutral_share, got {kappa.min():g}")
    return nu * escape_0 * np.exp(-escape_0 * (kappa - 1 + nu))


# --- softmax: the bias is added to the logits ---------------------------------------------------------------


def softmax_escape(n, *, escape_0, gap, alpha, gamma) -> np.ndarray:
    r"""Softmax rule with equal gaps :math:`\Delta = B(r,r) - B(r,j)` for all :math:`j \ne r`.

    :math:`\operatorname{logit}(1-e_n) = \operatorname{logit}(1-e_0) + \alpha\Delta S_n`; never zero for finite
    :math:`S_n`, and one for ever if :math:`e_0 = 1`.
    """
    escape_0, gap, alpha, gamma = _parameters(escape_0, gap, alpha, gamma)
    pushed = _spent(alpha * gap, n, gamma)
    return np.where(escape_0 < 1, expit(logit(np.where(escape_0 < 1, escape_0, 0.5)) - pushed), 1)[()]


def softmax_row_escape(n, row, bias_row, state: int, *, alpha, gamma) -> np.ndarray:
    r"""Softmax rule with any gaps: odds :math:`\sum_{j\ne r}(Q_0(r,j)/q_0)\exp(-\alpha S_n(B(r,r)-B(r,j)))`.

    ``row`` and ``bias_row`` are the rows of the refusal state, 1-d; ``n``, ``alpha`` and ``gamma`` broadcast.
    """
    row, bias_row = check_range("row", row, "[0, 1]"), check_range("bias_row", bias_row, "(-inf, inf)")
    if row.ndim != 1 or bias_row.shape != row.shape:
        raise ValueError(f"bias_row must be 1-d and as long as row, got shapes {bias_row.shape} and {row.shape}")
    if abs(row.sum() - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(f"row must sum to 1, got {row.sum():g}")
    (state,) = check_states("state", state, row.size)
    alpha = check_range("alpha", alpha, "[0, inf)")
    pushed = np.asarray(_spent(alpha, n, gamma))[..., None]
    others = np.arange(row.size) != state
    gaps = (bias_row[state] - bias_row)[others]
    odds = (row[others] * np.exp(np.clip(-np.where(gaps == 0, 0, pushed * gaps), -690, 690))).sum(-1)
    return odds / (odds + row[state])


def softmax_budget(delta, escape_0) -> np.ndarray:
    r""":math:`\Lambda = \operatorname{logit}(e_0) - \operatorname{logit}(\delta)`, the shift that is needed."""
    return logit(check_range("escape_0", escape_0, "(0, 1]")) - logit(check_range("delta", delta, "(0, 1)"))


def softmax_steps(delta, *, escape_0, gap, alpha, gamma) -> np.ndarray:
    r"""The smallest n with :math:`\alpha\Delta S_n \ge \Lambda`.

    Infinite if :math:`\alpha\Delta/(1-\gamma) \le \Lambda`.
    """
    escape_0, gap, alpha, gamma = _parameters(escape_0, gap, alpha, gamma)
    needed = np.maximum(softmax_budget(delta, escape_0), 0)
    return steps_to_sum(_ratio(needed, alpha * gap), gamma)


def softmax_threshold(delta, *, escape_0, gap, gamma) -> np.ndarray:
    r""":math:`(1-\gamma)\Lambda/\Delta`: the learning rate has to be strictly above it, and it grows with 1/delta."""
    escape_0, gap, _, gamma = _parameters(escape_0, gap, 1, gamma)
    budget = np.maximum(softmax_budget(delta, escape_0), 0)
    return np.where(gamma < 1, (1 - gamma) * budget / gap, 0)[()]


# --- cross-entropy and mixing: the same direction, in logits and in probabilities ---------------------------


def cross_entropy_escape(n, *, escape_0, alpha, gamma) -> np.ndarray:
    r"""Gradient flow of the cross-entropy with two outcomes, at flow time :math:`\alpha S_n`.

    The margin :math:`m = \operatorname{logit}(1-e)` obeys :math:`m' = 2e`, so :math:`m + e^m` grows at rate 2
    and the odds :math:`e^m` are Wright's omega of it. Discrete steps are never slower than the flow: the flow
    is an upper bound on :math:`e_n`, close for small :math:`\alpha`.
    """
    escape_0 = check_range("escape_0", escape_0, "(0, 1)")
    alpha = check_range("alpha", alpha, "[0, inf)")
    spent = _spent(2 * alpha, n, gamma)
    clock = np.minimum(_margin_clock(escape_0) + spent, 1e300)
    return 1 / (1 + wrightomega(clock).real)


def cross_entropy_steps(delta, *, escape_0, alpha, gamma) -> np.ndarray:
    r"""The smallest n at which the flow has :math:`e \le \delta`; about :math:`1/(2\alpha\delta)` at gamma = 1."""
    delta, escape_0 = check_range("delta", delta, "(0, 1)"), check_range("escape_0", escape_0, "(0, 1)")
    alpha = check_range("alpha", alpha, "[0, inf)")
    needed = np.maximum(_margin_clock(delta) - _margin_clock(escape_0), 0)
    return steps_to_sum(_ratio(needed, 2 * alpha), gamma)


def cross_entropy_iterates(n: int, *, escape_0, alpha, gamma) -> np.ndarray:
    r"""Discrete gradient steps with two outcomes: :math:`m_{t+1} = m_t + 2\alpha\gamma^t e_t`; no closed form is known.

    Returns :math:`e_0, ..., e_n` along a last axis of length n + 1, never above the flow of :func:`cross_entropy_escape`.
    """
    escape_0, alpha = check_range("escape_0", escape_0, "(0, 1)"), check_range("alpha", alpha, "[0, inf)")
    escape_0, alpha, gamma = np.broadcast_arrays(escape_0, alpha, check_range("gamma", gamma, "(0, 1]"))
    margin, path = -logit(escape_0), []
    for t in range(int(check_count("n", n))):
        path.append(margin)
        margin = margin + 2 * alpha * gamma**t * expit(-margin)
    return expit(-np.stack([*path, margin], axis=-1))


def cross_entropy_discrete_steps(delta, *, escape_0, alpha, gamma, most: int = 100_000) -> np.ndarray:
    """The smallest n at which discrete steps have an escape of at most ``delta``, by iteration: exact, and never above
    :func:`cross_entropy_steps`.

    Infinite where the count exceeds ``most`` and the flow never arrives either.

    Raises
    ------
    ValueError
        The flow arrives, but the discrete steps have not after ``most`` of them: raise ``most``.
    """
    delta = check_range("delta", delta, "(0, 1)")
    delta, escape_0, alpha, gamma = np.broadcast_arrays(delta, escape_0, alpha, gamma)
    flow = np.asarray(cross_entropy_steps(delta, escape_0=escape_0, alpha=alpha, gamma=gamma))
    margin, wanted, gamma = -logit(np.asarray(escape_0, dtype=float)), -logit(delta), np.asarray(gamma, dtype=float)
    steps = np.where(margin >= wanted, 0.0, np.inf)
    for t in range(most):
        pushed = 2 * alpha * gamma**t * expit(-margin)
        margin = margin + pushed
        steps = np.where(np.isinf(steps) & (margin >= wanted), t + 1, steps)
        if not (np.isinf(steps) & (pushed > 1e-17 * np.maximum(1, np.abs(margin)))).any():
            break
    else:
        if (np.isinf(steps) & np.isfinite(flow)).any():
            raise ValueError(f"most must be larger: {most} steps do not reach delta, though finitely many do")
    return steps[()]


def cross_entropy_threshold(delta, *, escape_0, gamma) -> np.ndarray:
    """The learning rate that the flow has to exceed to get below ``delta``."""
    delta, escape_0 = check_range("delta", delta, "(0, 1)"), check_range("escape_0", escape_0, "(0, 1)")
    gamma = check_range("gamma", gamma, "(0, 1]")
    return (1 - gamma) * np.maximum(_margin_clock(delta) - _margin_clock(escape_0), 0) / 2


def _margin_clock(escape) -> np.ndarray:
    """m + e^m, which the flow moves forward at a constant rate."""
    odds = (1 - escape) / escape
    return np.log(odds) + odds


def mixing_escape(n, *, escape_0, alpha, gamma) -> np.ndarray:
    r"""Mixing with the point mass: :math:`e_n = e_0(\alpha;\gamma)_n = e_0\prod_{t<n}(1-\alpha\gamma^t)`."""
    alpha = check_range("alpha", alpha, "[0, 1]")
    return check_range("escape_0", escape_0, "(0, 1]") * np.exp(log_pochhammer(-alpha, gamma, n))


def mixing_steps(delta, *, escape_0, alpha, gamma) -> np.ndarray:
    """The smallest n at which :func:`mixing_escape` is at most ``delta``; infinite if none."""
    arguments = np.broadcast_arrays(delta, escape_0, alpha, gamma)
    delta, escape_0, alpha, gamma = arguments
    return first_step(lambda n: mixing_escape(n, escape_0=escape_0, alpha=alpha, gamma=gamma), delta)


def mixing_threshold(delta, *, escape_0, gamma) -> np.ndarray:
    r"""The learning rate above which mixing gets below ``delta`` at some step: :math:`(\alpha;\gamma)_\infty < \delta/e_0`.

    Below one for every delta, since :math:`\alpha = 1` refuses at once; zero at gamma = 1. By bisection, to 1e-12.
    """
    delta, escape_0 = check_range("delta", delta, "(0, 1]"), check_range("escape_0", escape_0, "(0, 1]")
    delta, escape_0, gamma = np.broadcast_arrays(delta, escape_0, check_range("gamma", gamma, "(0, 1]"))
    low, high = np.zeros(delta.shape), np.ones(delta.shape)
    for _ in range(40):
        middle = (low + high) / 2
        enough = mixing_escape(np.inf, escape_0=escape_0, alpha=middle, gamma=gamma) < delta
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where((delta >= escape_0) | (gamma == 1), 0, high)[()]


# --- from one token to a whole response ---------------------------------------------------------------------


def response_delta(epsilon, length) -> np.ndarray:
    r""":math:`1-(1-\varepsilon)^{1/N}`: the delta per token that keeps a refusal of N tokens up to epsilon."""
    epsilon, length = check_range("epsilon", epsilon, "[0, 1)"), check_count("length", length, at_least=1)
    return -np.expm1(np.log1p(-epsilon) / length)


def response_escape(escape, length) -> np.ndarray:
    r""":math:`1-(1-e)^N \le Ne`: the probability that a refusal of N tokens is left at one of them."""
    escape, length = check_range("escape", escape, "[0, 1)"), check_count("length", length, at_least=1)
    return -np.expm1(length * np.log1p(-escape))
