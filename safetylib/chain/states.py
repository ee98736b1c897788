r"""A language model as a finite Markov chain, and what is lost when its states are lumped together.

**Setting.** A vocabulary of :math:`V` tokens and a context window of :math:`K`. A *window* is a sequence of one to
:math:`K` tokens; the next-token law :math:`p(\cdot \mid x)` of a model with this context is a function of the window
:math:`x` and of nothing else. Appending :math:`y` leads from :math:`x` to :math:`x + y`, or to
:math:`x_2 \dots x_K y` if the window is full. That is a Markov chain on the windows.

**Facts.**

* *Count.* There are :math:`N = \sum_{k=1}^{K} V^k = V(V^K-1)/(V-1)` windows. Each row of the transition matrix has at
  most :math:`V` entries, so the share of non-zeros is at most :math:`V/N = (V-1)/(V^K-1)`.
* *Nothing absorbs.* Windows that are not full are never seen again. If every next-token probability is positive, as
  it is under a softmax of finite logits, any full window is reached from any window in exactly :math:`K` steps. So
  no proper subset of the full windows is closed, unless a token that ends the text is *made* absorbing.

A *lumping* gives each state a block; :math:`U` is the (N, m) indicator of the blocks.

* *Lumpability* (Kemeny and Snell). The blocks form a Markov chain from every start iff :math:`PU = U\hat P` for some
  :math:`\hat P`. The *defect* :math:`\eta = \max_i \lVert (PU)_i - \hat P_{b(i)} \rVert_1` is zero iff they do.
* *Error after n steps.* :math:`\lVert \mu P^n U - \mu U \hat P^n \rVert_1 \le \min(n\eta, \eta(1-\tau^n)/(1-\tau))`,
  where :math:`\tau` is the Dobrushin coefficient of :math:`\hat P`.
* *Error of hitting probabilities.* :math:`|h(x) - \hat h(b(x))| \le \frac{\eta}{2}\,\mathbf{E}_x[\text{steps until
  absorbed}]`.
* *Position-indexed lumping.* :math:`\hat P_t(a, b) = \mathbf P(X_{t+1} \in b \mid X_t \in a)` under one start
  reproduces the law of the block at every time, lumpable or not. It need not reproduce events at several times, nor
  what happens after an intervention, such as a forced prefix.

A *forced prefix* is a start: the chain set down in the window of the given tokens, ``windows.index(prefix)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from safetylib.chain import absorbing
from safetylib.chain.checks import (
    ROW_SUM_TOLERANCE,
    check_count,
    check_range,
    check_states,
    check_transition_matrix,
)

# --- counting ---------------------------------------------------------------------------------------------------------


def count_states(vocabulary: int, context: int) -> int:
    """The number of windows, exactly, however large: V + V^2 + ... + V^K."""
    size, length = _sizes(vocabulary, context)
    return length if size == 1 else size * (size**length - 1) // (size - 1)


def log10_states(vocabulary, context) -> np.ndarray:
    """The decimal logarithm of :func:`count_states`, for arrays of models too large to count."""
    size, length = check_count("vocabulary", vocabulary, at_least=1), check_count("context", context, at_least=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.log1p(-(size**-length)) - np.log1p(-1 / size)
        return np.where(size > 1, length * np.log10(size) + rest / np.log(10), np.log10(length))[()]


def log10_density(vocabulary, context) -> np.ndarray:
    """The decimal logarithm of the largest share of non-zeros that the transition matrix can have, V/N."""
    return np.log10(check_count("vocabulary", vocabulary, at_least=1)) - log10_states(vocabulary, context)


# --- the chain on windows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """All windows of one to ``context`` tokens, numbered: shorter ones first, then in the order of their tokens.

    Tokens are the numbers 0 to ``vocabulary - 1``.
    """

    vocabulary: int
    context: int

    def __post_init__(self) -> None:
        for name, size in zip(("vocabulary", "context"), _sizes(self.vocabulary, self.context), strict=True):
            object.__setattr__(self, name, size)
        digits = log10_states(self.vocabulary, self.context)
        if digits > 7:
            raise ValueError(
                f"context must leave at most ten million windows to list, got {self.context} with vocabulary "
                f"{self.vocabulary}, that is about 10^{digits:.1f}; count_states counts them"
            )

    def __len__(self) -> int:
        return count_states(self.vocabulary, self.context)

    def index(self, tokens) -> int:
        """The number of the window that a model sees after ``tokens``: the last ``context`` of them."""
        tokens = check_count("tokens", tokens)
        if tokens.ndim != 1 or not tokens.size:
            raise ValueError(f"tokens must be a sequence of at least one token, got shape {tokens.shape}")
        if tokens.max() >= self.vocabulary:
            raise ValueError(f"tokens must be below {self.vocabulary}, got {tokens.max():g}")
        window = tokens[-self.context :].astype(int)
        return int(self._first(len(window)) + window @ self.vocabulary ** np.arange(len(window))[::-1])

    def tokens(self, state: int) -> tuple[int, ...]:
        """The tokens of the window with number ``state``."""
        ((rank,), length) = check_states("state", state, len(self)), 1
        while rank >= self.vocabulary**length:
            rank, length = rank - self.vocabulary**length, length + 1
        return tuple(int(rank // self.vocabulary**place % self.vocabulary) for place in reversed(range(length)))

    def lengths(self) -> np.ndarray:
        """(N,) number of tokens of each window."""
        sizes = self.vocabulary ** np.arange(1, self.context + 1)
        return np.repeat(np.arange(1, self.context + 1), sizes)

    def table(self) -> np.ndarray:
        """(N, K) tokens of each window, the latest in the last column, -1 where a window is shorter."""
        lengths, numbers = self.lengths(), np.arange(len(self))
        rank = numbers - self._first(lengths)
        place = np.arange(self.context)[::-1]
        digits = rank[:, None] // self.vocabulary**place % self.vocabulary
        return np.where(place < lengths[:, None], digits, -1)

    def last(self) -> np.ndarray:
        """(N,) latest token of each window."""
        return self.table()[:, -1]

    def successors(self) -> np.ndarray:
        """(N, V) number of the window that follows when a token is appended."""
        lengths = self.lengths()
        rank = np.arange(len(self)) - self._first(lengths)
        full = lengths == self.context
        kept = np.where(full, rank % self.vocabulary ** (self.context - 1), rank)
        first = self._first(np.where(full, lengths, lengths + 1))
        return (first + kept * self.vocabulary)[:, None] + np.arange(self.vocabulary)

    def _first(self, length):
        """The number of the first window of a length."""
        size = self.vocabulary
        return length - 1 if size == 1 else size * (size ** (length - 1) - 1) // (size - 1)


def window_chain(windows: Windows, next_token, *, end: int | None = None) -> sp.csr_array:
    """The exact transition matrix of a language model over all its windows.

    Parameters
    ----------
    windows
        The states.
    next_token
        (N, V) next-token probabilities after each window, e.g. a softmax of logits.
    end
        A token that ends the text: windows whose latest token it is become absorbing. By default no token does, and
        the model talks on for ever.

    Returns
    -------
    csr_array
        (N, N), with at most V entries a row.
    """
    law = check_range("next_token", next_token, "[0, inf)")
    shape = (len(windows), windows.vocabulary)
    if law.shape != shape:
        raise ValueError(f"next_token must have shape {shape}, one row a window, got {law.shape}")
    sums = law.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(f"next_token must have rows that sum to 1, got row {worst} with sum {sums[worst]:.12g}")
    rows = np.repeat(np.arange(shape[0]), shape[1])
    columns, entries = windows.successors().ravel(), law.ravel()
    if end is not None:
        (end,) = check_states("end", end, windows.vocabulary)
        ended = np.flatnonzero(windows.last() == end)
        going_on = ~np.isin(rows, ended)
        rows, columns = np.r_[rows[going_on], ended], np.r_[columns[going_on], ended]
        entries = np.r_[entries[going_on], np.ones(ended.size)]
    matrix = sp.csr_array(sp.coo_array((entries, (rows, columns)), shape=(len(windows),) * 2))
    matrix.eliminate_zeros()
    return matrix


def closed_classes(matrix) -> list[np.ndarray]:
    """The smallest sets of states that are never left once entered, each sorted, by their least state.

    A chain without transient states that has one class only is irreducible.
    """
    matrix = sp.csr_array(check_transition_matrix("matrix", matrix))
    count, label = sp.csgraph.connected_components(matrix, directed=True, connection="strong")
    origin, target = matrix.nonzero()
    left = np.unique(label[origin[label[origin] != label[target]]])
    kept = [np.flatnonzero(label == name) for name in np.setdiff1d(np.arange(count), left)]
    return sorted(kept, key=lambda states: states[0])


# --- distributions over time ------------------------------------------------------------------------------------------


def point_mass(state: int, size: int) -> np.ndarray:
    """The distribution on ``size`` states that sits on one: the start after a forced prefix."""
    (state,) = check_states("state", state, size)
    return np.eye(1, size, state)[0]


def laws(start, transitions: Iterable) -> np.ndarray:
    """The laws of the chain at times 0 to n.

    Parameters
    ----------
    start
        (N,) distribution at time 0.
    transitions
        n transition matrices, one for each step; ``itertools.repeat(matrix, n)`` if they are all the same. Rows may
        be undefined (nan) where the chain cannot be.

    Returns
    -------
    ndarray
        (n + 1, N).

    Raises
    ------
    ValueError
        If the chain comes into a state whose row is undefined.
    """
    path = [_distribution("start", start)]
    for step, matrix in enumerate(transitions):
        path.append(_push(path[-1], matrix, step))
    return np.array(path)


def stays_within(start, transitions: Iterable, states) -> float:
    """The probability that the chain is in ``states`` at every time from 0 to n; arguments as in :func:`laws`."""
    law = _distribution("start", start)
    kept = np.zeros(law.size)
    kept[check_states("states", states, law.size)] = 1
    law = law * kept
    for step, matrix in enumerate(transitions):
        law = _push(law, matrix, step) * kept
    return min(float(law.sum()), 1.0)


def _push(law: np.ndarray, matrix, step: int) -> np.ndarray:
    if matrix.shape != (law.size, law.size):
        raise ValueError(f"transitions must have shape {(law.size, law.size)}, got {matrix.shape} at step {step}")
    if sp.issparse(matrix):
        return matrix.T @ law
    occupied = law > 0
    after = law[occupied] @ np.asarray(matrix, float)[occupied]
    if np.isnan(after).any():
        place = np.flatnonzero(occupied & np.isnan(matrix).any(axis=1))[0]
        raise ValueError(f"transitions must be defined where the chain is, got nan in row {place} at step {step}")
    return after


# --- lumping ----------------------------------------------------------------------------------------------------------


def lump(matrix, blocks, weights=None) -> np.ndarray:
    r"""The lumped chain :math:`\hat P`: within each block, the weighted mean of the rows of :math:`PU`.

    Parameters
    ----------
    matrix
        (N, N) transition matrix, dense or scipy-sparse.
    blocks
        (N,) the block, 0 to m - 1, of each state.
    weights
        (N,) non-negative, by default equal. The choice matters, unless the chain is lumpable.

    Returns
    -------
    ndarray
        (m, m) transition matrix.
    """
    matrix, indicator = _blocks(matrix, blocks)
    weights = np.ones(matrix.shape[0]) if weights is None else check_range("weights", weights, "[0, inf)")
    if weights.shape != (matrix.shape[0],):
        raise ValueError(f"weights must have shape {(matrix.shape[0],)}, got {weights.shape}")
    mass = indicator.T @ weights
    if (mass == 0).any():
        raise ValueError(f"weights must be positive somewhere in every block, got none in block {np.argmin(mass)}")
    return (indicator.T @ (weights[:, None] * _to_blocks(matrix, indicator))) / mass[:, None]


def lumping_defects(matrix, blocks, lumped) -> np.ndarray:
    r"""(N,) for each state :math:`\lVert (PU)_i - \hat P_{b(i)} \rVert_1`; their maximum is the defect :math:`\eta`.

    All are zero iff the chain is lumpable and ``lumped`` is its lumped chain.
    """
    matrix, indicator = _blocks(matrix, blocks)
    lumped = _lumped(lumped, indicator.shape[1])
    return np.abs(_to_blocks(matrix, indicator) - indicator @ lumped).sum(axis=1)


def is_lumpable(matrix, blocks, *, tolerance: float = 1e-9) -> bool:
    """Whether the blocks form a Markov chain from every start (Kemeny and Snell)."""
    check_range("tolerance", tolerance, "[0, inf)")
    return bool(lumping_defects(matrix, blocks, lump(matrix, blocks)).max() <= tolerance)


def dobrushin_coefficient(matrix) -> float:
    r""":math:`\tau = \frac12 \max_{i,j} \lVert P_i - P_j \rVert_1`: by how much a step can keep two laws apart."""
    matrix = check_transition_matrix("matrix", matrix)
    matrix = matrix.toarray() if sp.issparse(matrix) else matrix
    return min(float(max(np.abs(matrix - row).sum(axis=1).max() for row in matrix) / 2), 1.0)


def lumped_law_bound(n, defect, dobrushin) -> np.ndarray:
    r"""A bound on the L1 distance between the law of the block after n steps and the lumped chain's.

    :math:`\min(n\eta,\ \eta(1-\tau^n)/(1-\tau),\ 2)`, from any start; two is what any two laws keep to. ``n`` may be
    infinite.
    """
    n = check_count("n", n, infinite=True)
    defect, tau = check_range("defect", defect, "[0, inf)"), check_range("dobrushin", dobrushin, "[0, 1]")
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.where(tau < 1, (1 - tau**n) / (1 - tau), n)
        return np.where(defect == 0, 0, np.minimum(defect * np.minimum(n, steps), 2))[()]


def hitting_error_bound(matrix, blocks, lumped, absorbed) -> np.ndarray:
    r"""A bound on the error of the lumped chain's hitting probabilities, for every state.

    :math:`\frac{\eta}{2}\,\mathbf{E}_x[\text{steps until absorbed}]`, and one at most.

    Parameters
    ----------
    matrix, blocks, lumped
        As in :func:`lumping_defects`.
    absorbed
        Blocks at which both chains are stopped: those that are to be hit and those from which they no longer can be.

    Returns
    -------
    ndarray
        (N,): bounds for :math:`|h(x) - \hat h(b(x))|`, both for hitting any of the absorbed blocks first.
    """
    lumped = _lumped(lumped, len(np.unique(blocks)))
    absorbed = check_states("absorbed", absorbed, len(lumped))
    inside = ~np.isin(blocks, absorbed)
    defect = (lumping_defects(matrix, blocks, lumped) * inside).max()
    if defect == 0:
        return np.zeros(len(inside))
    return np.minimum(defect / 2 * absorbing.expected_steps(matrix, np.flatnonzero(~inside)), 1)


def position_lumped(matrix, blocks, start, n: int) -> np.ndarray:
    r"""The position-indexed lumped chain: the blocks' one-step conditionals at each time, under one start.

    Parameters
    ----------
    matrix, blocks
        As in :func:`lump`.
    start
        (N,) distribution at time 0.
    n
        Number of steps.

    Returns
    -------
    ndarray
        (n, m, m). Entry (t, a, b) is :math:`\mathbf P(X_{t+1} \in b \mid X_t \in a)`; a row is nan where its block has
        no mass at that time, for then nothing is known about it.
    """
    matrix, indicator = _blocks(matrix, blocks)
    law = _distribution("start", start)
    if law.size != matrix.shape[0]:
        raise ValueError(f"start must have {matrix.shape[0]} entries, got {law.size}")
    (steps,) = np.atleast_1d(check_count("n", n)).astype(int)
    onwards = _to_blocks(matrix, indicator)
    chain = np.full((steps, indicator.shape[1], indicator.shape[1]), np.nan)
    for t in range(steps):
        mass = indicator.T @ law
        joint = indicator.T @ (law[:, None] * onwards)
        chain[t, mass > 0] = joint[mass > 0] / mass[mass > 0, None]
        law = matrix.T @ law
    return chain


def _sizes(vocabulary, context) -> tuple[int, int]:
    """Both as Python integers, which do not overflow."""
    return int(check_count("vocabulary", vocabulary, at_least=1)), int(check_count("context", context, at_least=1))


def _distribution(name: str, law) -> np.ndarray:
    law = check_range(name, law, "[0, inf)")
    if law.ndim != 1 or abs(law.sum() - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(f"{name} must be a distribution, got shape {law.shape} with sum {law.sum():.12g}")
    return law


def _blocks(matrix, blocks):
    """The matrix and the sparse (N, m) indicator of its blocks, checked."""
    matrix = check_transition_matrix("matrix", matrix)
    blocks = check_count("blocks", blocks)
    if blocks.shape != (matrix.shape[0],):
        raise ValueError(f"blocks must have shape {(matrix.shape[0],)}, one block a state, got {blocks.shape}")
    names = np.unique(blocks)
    missing = np.setdiff1d(np.arange(names[-1]), names)
    if missing.size:
        raise ValueError(f"blocks must be numbered without gaps, got no state in block {missing[0]:g}")
    entries = (np.ones(blocks.size), (np.arange(blocks.size), blocks.astype(int)))
    return matrix, sp.csr_array(entries, shape=(blocks.size, names.size))


def _lumped(lumped, count: int) -> np.ndarray:
    lumped = check_transition_matrix("lumped", lumped)
    if lumped.shape != (count, count):
        raise ValueError(f"lumped must have one row a block, {count}, got shape {lumped.shape}")
    return lumped


def _to_blocks(matrix, indicator) -> np.ndarray:
    """:math:`PU`, dense: the probability of moving from each state to each block."""
    product = matrix @ indicator
    return product.toarray() if sp.issparse(product) else product
