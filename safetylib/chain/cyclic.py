r"""A bias that is carried round: cyclic augmentation as a permutation acting on the bias matrix.

**Setting.** As in :mod:`safetylib.chain.updates`, but the bias changes with time. A permutation :math:`\pi`
of the states has the matrix :math:`P` with :math:`Pe_i = e_{\pi(i)}`, and update :math:`t` adds
:math:`\alpha\gamma^t B(t)` with

.. math:: B(t) = P^t B P^{-t}, \qquad B(t)(i,j) = B(\pi^{-t}i, \pi^{-t}j).

:math:`L` is the length of the orbit of the refusal state :math:`r`; it divides the order of :math:`P`, the
least common multiple of all cycle lengths. What r sees is periodic, and this *pattern* is all it sees:

.. math:: d_k = B(k)(r,r) = B(\pi^{-k}r, \pi^{-k}r), \quad k < L, \qquad D_s = \sum_{k<s} d_k\gamma^k.

**Facts.** Write :math:`n = mL + s` with :math:`s < L` for the number of updates.

* *Orbit sum.* :math:`\sum_{t<n}\gamma^t B(t)(r,r) = D_L\frac{1-\gamma^{mL}}{1-\gamma^L} + \gamma^{mL}D_s`,
  with limit :math:`D_L/(1-\gamma^L)`. The order of :math:`P` does not enter.
* *Matrix form.* :math:`X = \sum_t \gamma^t B(t)` is the only solution of the Stein equation :math:`X = B +
  \gamma P X P^{-1}`; as :math:`\gamma \to 1`, :math:`(1-\gamma)X` tends to the Reynolds average
  :math:`\frac1o\sum_{k<o} P^kBP^{-k}`, :math:`o` the order of :math:`P`.
* *Escape.* Let :math:`d_k \ge 0`, and let every push take as much beside the diagonal as it adds on it (a
  proportional bias), stopping at zero. Then :math:`e_n = \max(0, e_0 - \alpha\cdot\text{orbit sum})`.
  It gets to :math:`\delta` for some n iff :math:`\alpha D_L/(1-\gamma^L) > e_0-\delta`, and within one cycle
  iff :math:`\alpha D_L \ge e_0-\delta`.
* *Tuned.* With :math:`\alpha_c = (1-\gamma^L)e_0/D_L`, :math:`e_{mL} = e_0\gamma^{mL}`: the law of the
  constant bias, read off once a cycle. The orbit length costs at most :math:`L-1` updates.
* *Whole orbit.* If only :math:`d_0 = b` is not zero, the state :math:`\pi^jr` is pushed first at update j.
  Of the best that any schedule with the same total can do for the worst state of the orbit, a cyclic bias
  does the fraction :math:`\varphi = L\gamma^{L-1}(1-\gamma)/(1-\gamma^L) \le 1`; the constant bias spread
  evenly over the orbit does all of it.

Chapter 3 of the book proves these facts in this order. A permutation is an array of images,
``permutation[i]`` :math:`= \pi(i)`, or its matrix. Functions on patterns take the cycle on the pattern's last
axis; its leading axes and all other arguments broadcast. No closed form loops over :math:`n`, and ``n = inf``
gives the limit.
"""

from __future__ import annotations

import decimal
import math

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from safetylib.chain.checks import as_written, check_count, check_range, check_square, check_states
from safetylib.chain.updates import discount_sum, paper_bound

# --- permutations -------------------------------------------------------------------------------------------


def check_permutation(name: str, permutation) -> np.ndarray:
    r"""Return a permutation as the int array of its images.

    Parameters
    ----------
    name
        The argument's name, for the message.
    permutation
        Images :math:`\pi(0), \pi(1), \dots`, or the matrix with :math:`P(\pi(i), i) = 1`.

    Raises
    ------
    ValueError
        If a state is hit twice or out of range, or the matrix is no permutation matrix.
    """
    try:
        array = np.asarray(permutation, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numeric, got {permutation!r}") from None
    if array.ndim == 2:
        matrix = check_square(name, array)
        if other := set(np.unique(matrix)) - {0.0, 1.0}:
            raise ValueError(f"{name} must hold zeros and ones, got {min(other):g}")
        for axis, line in ((0, "column"), (1, "row")):
            ones = matrix.sum(axis=axis)
            if (ones != 1).any():
                worst = int(np.argmax(ones != 1))
                raise ValueError(f"{name} must have one 1 in each {line}, got {ones[worst]:g} in {line} {worst}")
        return matrix.argmax(axis=0)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a list of images or a square matrix, got shape {array.shape}")
    images = check_count(name, array)
    if images.max() >= images.size:
        raise ValueError(f"{name} must hold states below {images.size}, got {images.max():g}")
    images = images.astype(int)
    hits = np.bincount(images, minlength=images.size)
    if (hits > 1).any():
        raise ValueError(f"{name} must hit every state once, got {int(np.argmax(hits > 1))} twice")
    return images


def permutation_matrix(permutation) -> np.ndarray:
    r"""The matrix :math:`P` with :math:`Pe_i = e_{\pi(i)}`."""
    images = check_permutation("permutation", permutation)
    matrix = np.zeros((images.size, images.size))
    matrix[images, np.arange(images.size)] = 1
    return matrix


def cycles(permutation) -> list[np.ndarray]:
    r"""The cycles, each as :math:`(i, \pi(i), \pi^2(i), \dots)` from its smallest state on; fixed points too."""
    images = check_permutation("permutation", permutation)
    unseen, found = np.ones(images.size, bool), []
    for state in range(images.size):
        if unseen[state]:
            found.append(_orbit(images, state))
            unseen[found[-1]] = False
    return found


def orbit(permutation, state: int) -> np.ndarray:
    r"""The states :math:`(r, \pi(r), \pi^2(r), \dots)` that ``state`` runs through."""
    images = check_permutation("permutation", permutation)
    (state,) = check_states("state", state, images.size)
    return _orbit(images, state)


def _orbit(images: np.ndarray, state: int) -> np.ndarray:
    visited = [int(state)]
    while (following := int(images[visited[-1]])) != state:
        visited.append(following)
    return np.array(visited)


def order(permutation) -> int:
    """The least common multiple of the cycle lengths: how often P has to be applied to be the identity."""
    return math.lcm(*(len(cycle) for cycle in cycles(permutation)))


def power(permutation, t: int) -> np.ndarray:
    r"""The images of :math:`\pi^t`; ``t`` may be negative. No loop over ``t``."""
    check_range("t", t, "(-inf, inf)")
    if t != int(t):
        raise ValueError(f"t must be a whole number, got {t:g}")
    images = check_permutation("permutation", permutation).copy()
    for cycle in cycles(images):
        images[cycle] = np.roll(cycle, -(int(t) % len(cycle)))
    return images


# --- the bias at each time, and all of it together ----------------------------------------------------------


def conjugated_bias(bias, permutation, t: int) -> np.ndarray:
    r""":math:`B(t) = P^tBP^{-t}`, with entries :math:`B(\pi^{-t}i, \pi^{-t}j)`.

    Parameters
    ----------
    bias
        (n, n) array.
    permutation
        Of the n states.
    t
        Whole number, not negative.
    """
    bias, images = _bias_and_permutation(bias, permutation)
    check_count("t", t)
    back = power(images, -int(t))
    return bias[np.ix_(back, back)]


def discounted_bias(n, bias, permutation, gamma: float) -> np.ndarray:
    r""":math:`X_n = \sum_{t<n}\gamma^tB(t)` as a matrix; ``n`` may be infinite.

    The limit solves the Stein equation :math:`X = B + \gamma PXP^{-1}`, a sparse linear system in the
    entries of X; what is missing after n updates is :math:`\gamma^nP^nXP^{-n}`.
    """
    bias, images = _bias_and_permutation(bias, permutation)
    check_count("n", n, infinite=True)
    check_range("gamma", gamma, "(0, 1)")
    size = len(bias) ** 2
    shift = sp.csc_array((np.ones(size), (_pair_images(images), np.arange(size))), shape=(size, size))
    system = sp.csc_array(sp.eye_array(size) - gamma * shift)
    limit = spsolve(system, bias.ravel()).reshape(bias.shape)
    return limit if np.isinf(n) else limit - gamma**n * conjugated_bias(limit, images, n)


def reynolds_average(bias, permutation) -> np.ndarray:
    r""":math:`\frac1o\sum_{k<o}P^kBP^{-k}`, which commutes with P: each entry averaged over its orbit of pairs."""
    bias, images = _bias_and_permutation(bias, permutation)
    size = len(bias) ** 2
    pairs = sp.csr_array((np.ones(size), (np.arange(size), _pair_images(images))), shape=(size, size))
    _, label = connected_components(pairs, directed=False)
    return (np.bincount(label, bias.ravel()) / np.bincount(label))[label].reshape(bias.shape)


def _pair_images(images: np.ndarray) -> np.ndarray:
    """The permutation of the flat indices of pairs (i, j) that moves both of them."""
    return (images[:, None] * images.size + images).ravel()


def _bias_and_permutation(bias, permutation):
    bias, images = check_square("bias", bias, dense=True), check_permutation("permutation", permutation)
    if len(bias) != images.size:
        raise ValueError(f"permutation must have as many states as bias, {len(bias)}, got {images.size}")
    return bias, images


# --- patterns: what one state of the orbit sees -------------------------------------------------------------


def orbit_pattern(bias, permutation, state: int) -> np.ndarray:
    r"""What ``state`` sees of a cyclic bias: :math:`d_k = B(\pi^{-k}r, \pi^{-k}r)` for k below the orbit length."""
    bias, images = _bias_and_permutation(bias, permutation)
    return np.diag(bias)[np.roll(orbit(images, state)[::-1], 1)]


def one_hot(length: int, offset: int = 0, bias: float = 1.0) -> np.ndarray:
    """The pattern of a state that is pushed once a cycle of ``length`` updates, first at update ``offset``."""
    check_count("length", length, at_least=1)
    check_range("offset", check_count("offset", offset), f"[0, {int(length) - 1}]")
    pattern = np.zeros(int(length))
    pattern[int(offset)] = check_range("bias", bias, "(0, inf)")
    return pattern


def whole_orbit(pattern) -> np.ndarray:
    r"""The patterns of all states of the orbit: entry (..., j, k) is what :math:`\pi^jr` sees at update k."""
    pattern = _check_pattern(pattern, "(-inf, inf)")
    k = np.arange(pattern.shape[-1])
    return pattern[..., (k - k[:, None]) % k.size]


def cyclic_sum(n, pattern, gamma) -> np.ndarray:
    r"""The orbit sum :math:`\sum_{t<n}\gamma^td_{t \bmod L}`; ``n`` may be infinite.

    Parameters
    ----------
    n
        Numbers of updates.
    pattern
        (..., L); entries of any sign.
    gamma
        Discount in (0, 1].
    """
    n, gamma = check_count("n", n, infinite=True), check_range("gamma", gamma, "(0, 1]")
    pattern = _check_pattern(pattern, "(-inf, inf)")
    sums = _partial_sums(pattern, gamma)
    n, gamma, total = np.broadcast_arrays(n, gamma, sums[..., -1])
    length, (full, rest) = pattern.shape[-1], _whole_cycles(n, pattern.shape[-1])
    started = gamma ** (full * length) * _at(sums, rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        repeats = np.where(gamma < 1, np.expm1(full * length * np.log(gamma)) / np.expm1(length * np.log(gamma)), full)
        return (np.where(total == 0, 0, total * repeats) + started)[()]


def discounted_mean(pattern, gamma) -> np.ndarray:
    r"""The mean of the pattern with weights :math:`\gamma^k(1-\gamma)/(1-\gamma^L)`.

    A constant bias of this size gives the state the same total in the limit. It never exceeds the largest
    :math:`d_k`, so a cyclic bias beats the constant :math:`d_0` for r iff this exceeds :math:`d_0`.
    """
    gamma, pattern = check_range("gamma", gamma, "(0, 1]"), _check_pattern(pattern, "(-inf, inf)")
    return (_partial_sums(pattern, gamma)[..., -1] / discount_sum(pattern.shape[-1], gamma))[()]


def _check_pattern(pattern, interval: str = "[0, inf)") -> np.ndarray:
    array = check_range("pattern", pattern, interval)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"pattern must have a last axis of at least one update, got shape {array.shape}")
    return array


def _partial_sums(pattern, gamma) -> np.ndarray:
    r""":math:`D_0, \dots, D_L` on the last axis."""
    pushes = pattern * np.asarray(gamma)[..., None] ** np.arange(pattern.shape[-1])
    return np.concatenate([np.zeros((*pushes.shape[:-1], 1)), np.cumsum(pushes, axis=-1)], axis=-1)


def _whole_cycles(n, length: int):
    """How many whole cycles n updates make, and how many updates are left."""
    finite = np.where(np.isfinite(n), n, 0)
    return np.where(np.isfinite(n), finite // length, np.inf), finite % length


def _at(values, index) -> np.ndarray:
    """``values[..., index]`` elementwise, ``values`` broadcast to the shape of ``index``."""
    values = np.broadcast_to(values, (*index.shape, values.shape[-1]))
    return np.take_along_axis(values, index[..., None].astype(int), axis=-1)[..., 0]


# --- one state ----------------------------------------------------------------------------------------------


def cyclic_escape(n, *, escape_0, pattern, alpha, gamma) -> np.ndarray:
    r""":math:`e_n = \max(0, e_0 - \alpha\cdot\text{orbit sum})`: a proportional bias that is carried round.

    Parameters
    ----------
    n
        Numbers of updates; infinity for the floor.
    escape_0, alpha, gamma
        As in :mod:`safetylib.chain.updates`.
    pattern
        (..., L), what the state sees; not negative (:func:`orbit_pattern`, :func:`one_hot`).
    """
    n = check_count("n", n, infinite=True)
    escape_0, pattern, alpha, gamma = _parameters(escape_0, pattern, alpha, gamma)
    length, limit = pattern.shape[-1], _limit(pattern, gamma)
    # Limit plus tail keeps its digits while e_n goes to zero; e_0 less what is spent, while gamma goes to one.
    store = alpha * np.where(alpha == 0, 0, limit)
    spent = alpha * np.where(alpha == 0, 0, cyclic_sum(n, pattern, gamma))
    full, rest = _whole_cycles(np.broadcast_arrays(n, gamma, limit)[0], length)
    with np.errstate(invalid="ignore"):
        tail = alpha * gamma ** (full * length) * _at(_remaining(pattern, gamma), rest)
        precise = (gamma < 1) & (store < 2 * escape_0)
        escape = np.where(precise, (escape_0 - store) + tail, escape_0 - spent)
    return np.maximum(escape, 0)[()]


def cyclic_steps(delta, *, escape_0, pattern, alpha, gamma) -> np.ndarray:
    r"""The smallest n with :math:`e_n \le \delta` under :func:`cyclic_escape`; infinite if none.

    For every s there is a least number of whole cycles after which :math:`mL + s` updates are enough, a
    logarithm rounded up; the answer is the least :math:`mL + s`. As in
    :func:`~safetylib.chain.updates.additive_steps`, where rounding could decide, the count is taken with 60
    digits, floats read as the simple fractions that they stand for.
    """
    delta = check_range("delta", delta, "[0, 1]")
    escape_0, pattern, alpha, gamma = _parameters(escape_0, pattern, alpha, gamma)
    delta, escape_0, alpha, gamma, _ = np.broadcast_arrays(delta, escape_0, alpha, gamma, pattern[..., 0])
    gap, length = np.maximum(escape_0 - delta, 0), pattern.shape[-1]
    needed = np.where((gap > 0) & (alpha == 0), np.inf, gap / np.where(alpha == 0, 1, alpha))
    with np.errstate(divide="ignore", over="ignore"):
        real, blur = _real_cycles(needed, escape_0 / gap, pattern, gamma)
    steps = np.array((np.ceil(np.maximum(real, 0)) * length + np.arange(length)).min(axis=-1))
    with np.errstate(invalid="ignore"):
        doubtful = np.isinf(blur) | (np.abs(real - np.rint(real)) <= blur)
    doubtful = doubtful.any(axis=-1) & (needed > 0) & np.isfinite(needed) & (pattern > 0).any(axis=-1)
    pattern = np.broadcast_to(pattern, (*steps.shape, length))
    for index in map(tuple, np.argwhere(doubtful)):
        numbers = (float(value[index]) for value in (delta, escape_0, alpha, gamma))
        steps[index] = _steps_in_decimals(*numbers, pattern[index])
    return steps[()]


def _real_cycles(needed, cancelled, pattern, gamma):
    """For s = 0, ..., L - 1 the real m with an orbit sum of ``needed`` after m L + s updates, and its error.

    ``cancelled`` is the factor by which the relative error of ``needed`` exceeds that of its parts. The error is
    infinite where rounding decides whether m exists.
    """
    length, sums = pattern.shape[-1], _partial_sums(pattern, gamma)
    needed, cancelled, gamma = needed[..., None], cancelled[..., None], gamma[..., None]
    with np.errstate(invalid="ignore"):
        scale = np.where(gamma < 1, _remaining(pattern, gamma[..., 0])[..., :-1], sums[..., -1:])
        # The share of what remains after s updates that has to remain after m L + s, less one.
        excess = np.where(scale > 0, (sums[..., :-1] - needed) / scale, -np.sign(needed) * np.inf)
        error = 1e-14 * (sums[..., :-1] + needed) / scale * cancelled
        rate = -length * np.log(gamma)
        real = np.where(gamma < 1, np.where(excess > -1, -np.log1p(excess) / rate, np.inf), -excess)
        blur = 1e-14 * (np.abs(real) + 1) + np.where(gamma < 1, error / (1 + excess) / rate, error)
    never = np.isinf(real)
    blur = np.where(never, 0, blur)
    return np.where(needed > 0, real, 0), np.where((gamma < 1) & (np.abs(1 + excess) <= 10 * error), np.inf, blur)


def _steps_in_decimals(delta, escape_0, alpha, gamma, pattern) -> float:
    with decimal.localcontext(prec=60) as context:
        delta, escape_0, alpha, gamma, *pushes = map(as_written, (delta, escape_0, alpha, gamma, *map(float, pattern)))
        needed, length = (escape_0 - delta) / alpha, len(pushes)
        sums = [
            sum((push * gamma**k for k, push in enumerate(pushes[:s])), decimal.Decimal(0)) for s in range(length + 1)
        ]
        if gamma == 1:
            reals = [(needed - spent) / sums[-1] for spent in sums[:-1]]
        else:
            limit = sums[-1] / (1 - gamma**length)
            if limit - needed <= limit * decimal.Decimal("1e-45"):
                return np.inf
            reals = [
                context.ln((limit - needed) / (limit - spent)) / (length * context.ln(gamma)) for spent in sums[:-1]
            ]
        return min(_round_up(max(real, decimal.Decimal(0))) * length + s for s, real in enumerate(reals))


def _round_up(real: decimal.Decimal) -> float:
    nearest = real.to_integral_value()
    return float(nearest if abs(real - nearest) < decimal.Decimal("1e-35") else np.ceil(real))


def cyclic_threshold(delta, *, escape_0, pattern, gamma) -> np.ndarray:
    r""":math:`(1-\gamma^L)(e_0-\delta)/D_L`: the learning rate has to be strictly above it; zero at gamma = 1."""
    delta = check_range("delta", delta, "[0, 1]")
    escape_0, pattern, _, gamma = _parameters(escape_0, pattern, 1, gamma)
    return _over(np.maximum(escape_0 - delta, 0), _limit(pattern, gamma))


def cyclic_tuned_alpha(*, escape_0, pattern, gamma) -> np.ndarray:
    r""":math:`\alpha_c = (1-\gamma^L)e_0/D_L`, which spends in the limit exactly what is needed."""
    escape_0, pattern, _, gamma = _parameters(escape_0, pattern, 1, gamma)
    return _over(escape_0, _limit(pattern, gamma))


def one_cycle_alpha(delta, *, escape_0, pattern, gamma) -> np.ndarray:
    r""":math:`(e_0-\delta)/D_L`: from this learning rate on, one cycle is enough.

    At ``delta`` = 0 it is the learning rate that rescues the min form of Proposition 4.8.
    """
    delta = check_range("delta", delta, "[0, 1]")
    escape_0, pattern, _, gamma = _parameters(escape_0, pattern, 1, gamma)
    return _over(np.maximum(escape_0 - delta, 0), _partial_sums(pattern, gamma)[..., -1])


def tuned_whole_cycles(delta, *, escape_0, length, gamma) -> np.ndarray:
    r""":math:`L\lceil\ln(\delta/e_0)/(L\ln\gamma)\rceil`: enough updates at the tuned learning rate.

    Whatever the pattern, and at most :math:`L-1` more than a tuned constant bias needs; a state that is pushed
    last in its cycle needs all of them.
    """
    delta, escape_0 = check_range("delta", delta, "(0, 1]"), check_range("escape_0", escape_0, "(0, 1]")
    length, gamma = check_count("length", length, at_least=1), check_range("gamma", gamma, "(0, 1)")
    real = np.maximum(np.log(delta / escape_0) / (length * np.log(gamma)), 0)
    tie = np.abs(real - np.rint(real)) <= 1e-12 * np.maximum(1, real)
    return (length * np.where(tie, np.rint(real), np.ceil(real)))[()]


def paper_cyclic_steps(delta, gamma, order) -> np.ndarray:
    r"""The smallest :math:`n = T+1` with :math:`T > \min(\ln(\delta(1-\gamma))/\ln\gamma, \mathrm{ord}(P)) - 1`.

    Proposition 4.8 as summarised. Neither learning rate nor bias nor starting point enters.
    """
    bound = np.minimum(paper_bound(delta, gamma) + 1, check_count("order", order, at_least=1))
    tie = np.abs(bound - np.rint(bound)) <= 1e-12 * np.maximum(1, bound)
    return (np.where(tie, np.rint(bound), np.floor(bound)) + 1)[()]


def _parameters(escape_0, pattern, alpha, gamma):
    return (
        check_range("escape_0", escape_0, "(0, 1]"),
        _check_pattern(pattern),
        check_range("alpha", alpha, "[0, inf)"),
        check_range("gamma", gamma, "(0, 1]"),
    )


def _limit(pattern, gamma) -> np.ndarray:
    r""":math:`D_L/(1-\gamma^L)`, all that the state will ever be given (before the learning rate)."""
    return cyclic_sum(np.inf, pattern, gamma)


def _remaining(pattern, gamma) -> np.ndarray:
    r"""What is still to come after s = 0, ..., L updates, by adding and not by subtracting."""
    pushes = pattern * gamma[..., None] ** np.arange(pattern.shape[-1])
    later = np.asarray(gamma ** pattern.shape[-1] * _limit(pattern, gamma))[..., None]
    rest = np.flip(np.cumsum(np.flip(pushes, axis=-1), axis=-1), axis=-1)
    return np.concatenate([rest + later, np.broadcast_to(later, (*rest.shape[:-1], 1))], axis=-1)


def _over(numerator, denominator) -> np.ndarray:
    """Division in which zero over anything is zero and a positive number over zero is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(numerator == 0, 0.0, np.true_divide(numerator, denominator))[()]


# --- all states of the orbit --------------------------------------------------------------------------------


def whole_orbit_escape(n, *, escape_0, pattern, alpha, gamma) -> np.ndarray:
    """The largest escape probability over the states of the orbit, all of which start from ``escape_0``.

    ``pattern`` is what one of them sees, (..., L); the others see it shifted.
    """
    n, escape_0, alpha, gamma = _with_axis(n, escape_0, alpha, gamma)
    pattern = whole_orbit(_check_pattern(pattern))
    return cyclic_escape(n, escape_0=escape_0, pattern=pattern, alpha=alpha, gamma=gamma).max(axis=-1)


def whole_orbit_steps(delta, *, escape_0, pattern, alpha, gamma) -> np.ndarray:
    r"""The smallest n at which every state of the orbit has :math:`e_n \le \delta`; infinite if none.

    With a one-hot pattern this is :math:`L\lceil\ln(1-(e_0-\delta)(1-\gamma^L)/(\alpha
    b\gamma^{L-1}))/(L\ln\gamma)\rceil`, hence at least L.
    """
    delta, escape_0, alpha, gamma = _with_axis(delta, escape_0, alpha, gamma)
    pattern = whole_orbit(_check_pattern(pattern))
    return cyclic_steps(delta, escape_0=escape_0, pattern=pattern, alpha=alpha, gamma=gamma).max(axis=-1)


def whole_orbit_threshold(delta, *, escape_0, pattern, gamma) -> np.ndarray:
    r"""The learning rate above which every state of the orbit gets to ``delta``; one-hot:
    :math:`(1-\gamma^L)(e_0-\delta)/(b\gamma^{L-1})`.
    """
    delta, escape_0, gamma = _with_axis(delta, escape_0, gamma)
    pattern = whole_orbit(_check_pattern(pattern))
    return cyclic_threshold(delta, escape_0=escape_0, pattern=pattern, gamma=gamma).max(axis=-1)


def coverage(length, gamma) -> np.ndarray:
    r""":math:`\varphi = L\gamma^{L-1}(1-\gamma)/(1-\gamma^L)`, between :math:`\gamma^{L-1}` and 1.

    What a one-hot cyclic bias does for the worst state of the orbit, over what the same total does when it is
    spread evenly and held constant.
    """
    length, gamma = check_count("length", length, at_least=1), check_range("gamma", gamma, "(0, 1]")
    return (length * gamma ** (length - 1) / discount_sum(length, gamma))[()]


def _with_axis(*values):
    return [np.asarray(value)[..., None] for value in values]
