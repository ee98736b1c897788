r"""How deep a refusal has to be trained: positions times {harmful, refusal}.

**Setting.** A response has :math:`K` positions. The state :math:`H_k` says that its first :math:`k` tokens are harmful,
whether the model wrote them or an attacker forced them; at position :math:`i = k+1, \dots, K` the model refuses with
probability :math:`\rho_i`, and goes on harmfully otherwise. :math:`H_K` is a completed harmful answer. A refusal lasts,
unless it *leaks*: with probability :math:`\lambda` a token it turns harmful again. The prefix length :math:`k` runs from
0 to :math:`K`.

**Facts**, for refusals that last.

* *Completion.* :math:`F_k = \prod_{i>k}(1-\rho_i)` is the probability that a harmful prefix of :math:`k` tokens is
  completed. It does not fall in :math:`k`.
* *Leak.* :math:`A_k = \sum_{i>k}\prod_{j=k+1}^{i}(1-\rho_j)` is the expected number of further harmful tokens. With
  :math:`\rho_i \ge \rho_{\min}` everywhere, :math:`A_k \le (1-\rho_{\min})/\rho_{\min}`.
* *Safety depth.* :math:`D_\varepsilon = \max\{k : F_k \le \varepsilon\}`: the longest prefix that the model
  survives.
* *One position.* If only position :math:`D` is trained, to :math:`\rho^*`, while :math:`\rho_0` stays elsewhere, then
  :math:`D_\varepsilon = D - 1` as soon as the model needs that position: :math:`(1-\rho_0)^{K-D} > \varepsilon \ge
  (1-\rho^*)(1-\rho_0)^{K-D}`. Its worst leak is at least that of the :math:`\lceil (K-1)/2 \rceil` untrained positions
  on one side of it.
* *Leaky refusals.* With :math:`\rho, \lambda` constant, the probability of being in refusal after :math:`n` more tokens
  tends to :math:`\rho/(\rho+\lambda)` from either start: a long response forgets how it began.

A *schedule* is how a training budget is shared over the positions: an array of shares that sum to one. Trained
probabilities are :math:`\rho_i = \min(1, \rho_0 + \beta w_i)`: what exceeds one is wasted. Schedules and formulas
broadcast over leading axes; positions are the last.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from safetylib.chain.checks import check_count, check_range

# --- what a response does ---------------------------------------------------------------------------------------------


def completion(rho) -> np.ndarray:
    r""":math:`F_k`, the probability that a harmful prefix of k tokens is completed.

    Parameters
    ----------
    rho
        (..., K) probability of refusing at positions 1 to K.

    Returns
    -------
    ndarray
        (..., K + 1), for k = 0 to K. The last is one.
    """
    harmful = 1 - _positions(rho)
    ones = np.ones((*harmful.shape[:-1], 1))
    return np.concatenate([np.cumprod(harmful[..., ::-1], axis=-1)[..., ::-1], ones], axis=-1)


def leak(rho) -> np.ndarray:
    r""":math:`A_k`, the expected number of harmful tokens after a harmful prefix of k; arguments as above."""
    harmful = 1 - _positions(rho)
    tokens = np.zeros((*harmful.shape[:-1], harmful.shape[-1] + 1))
    for k in reversed(range(harmful.shape[-1])):
        tokens[..., k] = harmful[..., k] * (1 + tokens[..., k + 1])
    return tokens


def safety_depth(rho, epsilon) -> np.ndarray:
    r""":math:`D_\varepsilon`, the longest harmful prefix that is completed with probability ``epsilon`` at most.

    Returns
    -------
    ndarray
        (...), whole numbers from 0 to K; -1 if the model completes too often even without a prefix. A probability
        within 1e-12 of ``epsilon``, relatively, counts as at most epsilon.
    """
    epsilon = check_range("epsilon", epsilon, "[0, 1]")
    return ((completion(rho) <= epsilon[..., None] * (1 + 1e-12)).sum(axis=-1) - 1)[()]


def recovery(rho, m: int) -> np.ndarray:
    """The probability of refusing within the next ``m`` positions, after a harmful prefix of k tokens.

    Returns
    -------
    ndarray
        (..., K - m + 1), for k = 0 to K - m: prefixes that leave m positions.
    """
    harmful = 1 - _positions(rho)
    (m,) = np.atleast_1d(check_count("m", m, at_least=1)).astype(int)
    if m > harmful.shape[-1]:
        raise ValueError(f"m must be at most the {harmful.shape[-1]} positions, got {m}")
    return 1 - np.lib.stride_tricks.sliding_window_view(harmful, m, axis=-1).prod(axis=-1)


def depth_chain(rho, leaking: float = 0.0) -> sp.csr_array:
    r"""The chain on positions times {harmful, refusal} as a transition matrix.

    Parameters
    ----------
    rho
        (K,) probability of refusing at positions 1 to K.
    leaking
        :math:`\lambda`, the probability that a refusal turns harmful at the next token.

    Returns
    -------
    csr_array
        (2K + 2, 2K + 2). State k is :math:`H_k`, state K + 1 + k a response of k tokens that is refusing. The
        responses of K tokens, K and 2K + 1, are absorbing.
    """
    rho = _positions(rho)
    if rho.ndim != 1:
        raise ValueError(f"rho must be one-dimensional, got shape {rho.shape}")
    check_range("leaking", leaking, "[0, 1]")
    k, size = np.arange(rho.size), rho.size + 1
    ends = np.array([rho.size, 2 * rho.size + 1])
    origin = np.r_[k, k, size + k, size + k, ends]
    target = np.r_[k + 1, size + k + 1, k + 1, size + k + 1, ends]
    entry = np.r_[1 - rho, rho, np.full(rho.size, leaking), np.full(rho.size, 1 - leaking), 1, 1]
    matrix = sp.csr_array((entry, (origin, target)), shape=(2 * size, 2 * size))
    matrix.eliminate_zeros()
    return matrix


def refusing_at_end(rho, leaking) -> tuple[np.ndarray, np.ndarray]:
    r"""The probability that the last token is one of refusal, from :math:`H_k` and from a refusal of k tokens.

    ``leaking`` is a number, or one for each position, (..., K). Both results are (..., K + 1), for k = 0 to K.
    """
    rho, leaking = np.broadcast_arrays(_positions(rho), check_range("leaking", leaking, "[0, 1]"))
    harmful = np.zeros((*rho.shape[:-1], rho.shape[-1] + 1))
    refusing = np.ones_like(harmful)
    for k in reversed(range(rho.shape[-1])):
        harmful[..., k] = rho[..., k] * refusing[..., k + 1] + (1 - rho[..., k]) * harmful[..., k + 1]
        refusing[..., k] = (1 - leaking[..., k]) * refusing[..., k + 1] + leaking[..., k] * harmful[..., k + 1]
    return harmful, refusing


def leaky_refusal(n, rho, leaking, *, start: str = "harmful") -> np.ndarray:
    r"""The probability of being in refusal n tokens later, at constant rates.

    With :math:`\mu = 1-\rho-\lambda` and :math:`\pi = \rho/(\rho+\lambda)` it is :math:`\pi(1-\mu^n)` from a harmful
    token and :math:`\pi + (1-\pi)\mu^n` from a refusing one. ``n`` may be infinite, which gives the limit; it is
    undefined, nan, if both rates are one.
    """
    if start not in ("harmful", "refusal"):
        raise ValueError(f"start must be 'harmful' or 'refusal', got {start!r}")
    n = check_count("n", n, infinite=True)
    rho, leaking = check_range("rho", rho, "[0, 1]"), check_range("leaking", leaking, "[0, 1]")
    total = rho + leaking
    with np.errstate(invalid="ignore"):
        forgotten = (1 - total) ** n
        forgotten = np.where((total == 2) & np.isinf(n), np.nan, forgotten)
        stationary = np.divide(rho, total, out=np.zeros(np.shape(total)), where=total > 0)
        refusing = stationary * (1 - forgotten) + (forgotten if start == "refusal" else 0)
    return refusing[()]


# --- schedules --------------------------------------------------------------------------------------------------------


def one_position(length: int, position: int) -> np.ndarray:
    """The whole budget on one position: ``shallow`` is position 1, ``deep`` a later one."""
    (position,) = _checked_positions("position", position, length)
    return np.eye(1, length, position - 1)[0]


def uniform(length: int, positions=None) -> np.ndarray:
    """Equal shares on ``positions`` (by default all, 1 to ``length``)."""
    positions = _checked_positions("positions", _all(length, positions), length)
    return np.isin(np.arange(1, length + 1), positions) / positions.size


def cyclic(length: int, gamma: float, positions=None) -> np.ndarray:
    r"""Each update trains the next of L ``positions`` in turn, with step sizes that shrink by ``gamma`` each.

    Shares in the limit of many updates: :math:`\gamma^j(1-\gamma)/(1-\gamma^L)` for the j-th, j = 0 to L - 1. At
    gamma = 1 they are equal.
    """
    positions = _checked_positions("positions", _all(length, positions), length)
    weights = check_range("gamma", gamma, "(0, 1]") ** np.arange(positions.size)
    shares = np.zeros(length)
    shares[positions - 1] = weights / weights.sum()
    return shares


def refusal_probabilities(shares, budget, rho_0) -> np.ndarray:
    r""":math:`\rho_i = \min(1, \rho_0 + \beta w_i)`.

    Parameters
    ----------
    shares
        (..., K), non-negative, each row summing to one: a schedule.
    budget
        :math:`\beta \ge 0`, broadcast against the leading axes.
    rho_0
        Probability of refusing at an untrained position.
    """
    shares = check_range("shares", shares, "[0, 1]")
    if shares.ndim == 0 or (np.abs(shares.sum(axis=-1) - 1) > 1e-9).any():
        raise ValueError(f"shares must sum to 1 over the positions, got {np.atleast_1d(shares.sum(axis=-1)).flat[0]:g}")
    budget, rho_0 = check_range("budget", budget, "[0, inf)"), check_range("rho_0", rho_0, "[0, 1]")
    return np.minimum(rho_0[..., None] + budget[..., None] * shares, 1)


def _checked_positions(name: str, positions, length: int) -> np.ndarray:
    """Positions, counted from one, as a sorted array of distinct whole numbers."""
    check_count("length", length, at_least=1)
    array = np.unique(check_count(name, np.atleast_1d(positions), at_least=1)).astype(int)
    if not array.size or array[-1] > length:
        raise ValueError(f"{name} must be between 1 and {length}, got {array[-1] if array.size else 'none'}")
    return array


# --- closed forms -----------------------------------------------------------------------------------------------------


def one_position_completion(k, *, length, position, rho_star, rho_0) -> np.ndarray:
    r""":math:`F_k` if position D alone is trained: :math:`(1-\rho^*)^{[k<D]}(1-\rho_0)^{K-k-[k<D]}`."""
    k, length, position, trained, untrained = _one(k, length, position, rho_star, rho_0)
    before = k < position
    return (np.where(before, trained, 1) * untrained ** (length - k - before))[()]


def one_position_leak(k, *, length, position, rho_star, rho_0) -> np.ndarray:
    r""":math:`A_k` if position D alone is trained, with :math:`g(m) = \sum_{i=1}^m (1-\rho_0)^i`.

    :math:`g(K-k)` from :math:`k \ge D`; before, :math:`g(D-1-k) + (1-\rho_0)^{D-1-k}(1-\rho^*)(1 + g(K-D))`.
    """
    k, length, position, trained, untrained = _one(k, length, position, rho_star, rho_0)
    ahead = np.maximum(position - 1 - k, 0)
    before = _geometric(untrained, ahead) + untrained**ahead * trained * (1 + _geometric(untrained, length - position))
    return np.where(k < position, before, _geometric(untrained, length - k))[()]


def uniform_depth(epsilon, *, length, orbit, rho, rho_0) -> np.ndarray:
    r""":math:`D_\varepsilon` if positions 1 to L are trained to the same :math:`\rho`.

    :math:`\lfloor L - (\ln\frac1\varepsilon - (K-L)\ln\frac1{1-\rho_0})/\ln\frac1{1-\rho} \rfloor` if the untrained
    positions after L do not suffice by themselves, and then :math:`L - 1` at most; -1 if that is negative.
    """
    epsilon = check_range("epsilon", epsilon, "(0, 1]")
    length, orbit = check_count("length", length, at_least=1), check_count("orbit", orbit, at_least=1)
    if (orbit > length).any():
        raise ValueError(f"orbit must be at most length, got {orbit.max():g}")
    rho, rho_0 = check_range("rho", rho, "[0, 1]"), check_range("rho_0", rho_0, "[0, 1]")
    needed = -np.log(epsilon)
    with np.errstate(all="ignore"):
        trained, untrained = -np.log1p(-rho), -np.log1p(-rho_0)
        after = np.where(length > orbit, (length - orbit) * untrained, 0)
        beyond = length - np.where(needed > 0, needed / untrained, 0)
        within = orbit - (needed - after) / trained
    survived = np.where(after >= needed, np.floor(beyond + 1e-9), np.minimum(np.floor(within + 1e-9), orbit - 1))
    return np.maximum(survived, -1)[()]


def one_position_leak_floor(length, rho_0) -> np.ndarray:
    r"""No single position has a worst leak below :math:`g(\lceil (K-1)/2 \rceil)`, whatever the budget."""
    length = check_count("length", length, at_least=1)
    return _geometric(1 - check_range("rho_0", rho_0, "[0, 1]"), np.ceil((length - 1) / 2))[()]


def leak_ceiling(rho_min) -> np.ndarray:
    r""":math:`(1-\rho_{\min})/\rho_{\min}`, which no leak exceeds if no position refuses less often."""
    rho_min = check_range("rho_min", rho_min, "(0, 1]")
    return ((1 - rho_min) / rho_min)[()]


def covering_budget(length, rho_0, gamma=1.0) -> np.ndarray:
    r"""The budget from which cyclic training of all positions provably leaks less than every single position.

    It brings :math:`\rho_{\min} = \rho_0 + \beta\gamma^{K-1}(1-\gamma)/(1-\gamma^K)` to where :func:`leak_ceiling`
    meets :func:`one_position_leak_floor`. Sufficient, not necessary.
    """
    length, gamma = check_count("length", length, at_least=1), check_range("gamma", gamma, "(0, 1]")
    with np.errstate(invalid="ignore", divide="ignore"):
        smallest = np.where(gamma < 1, gamma ** (length - 1) * (1 - gamma) / (1 - gamma**length), 1 / length)
    needed = 1 / (1 + one_position_leak_floor(length, rho_0))
    return (np.maximum(needed - rho_0, 0) / smallest)[()]


def _geometric(s, m):
    r""":math:`\sum_{i=1}^m s^i`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(s < 1, s * (1 - s**m) / (1 - s), m)


def _positions(rho) -> np.ndarray:
    rho = check_range("rho", rho, "[0, 1]")
    if rho.ndim == 0 or rho.shape[-1] == 0:
        raise ValueError(f"rho must have a last axis of at least one position, got shape {rho.shape}")
    return rho


def _all(length: int, positions):
    return np.arange(1, int(check_count("length", length, at_least=1)) + 1) if positions is None else positions


def _one(k, length, position, rho_star, rho_0):
    k, length = check_count("k", k), check_count("length", length, at_least=1)
    position = check_count("position", position, at_least=1)
    if (position > length).any():
        raise ValueError(f"position must be at most length, got {position.max():g}")
    if (k > length).any():
        raise ValueError(f"k must be at most length, got {k.max():g}")
    return (
        k,
        length,
        position,
        1 - check_range("rho_star", rho_star, "[0, 1]"),
        1 - check_range("rho_0", rho_0, "[0, 1]"),
    )
