r"""Absorbing states, and states that are absorbing but for :math:`\delta`.

Let :math:`Q` be a transition matrix on a finite set of states.

**Definitions.** A state :math:`r` is *absorbing* if :math:`Q(r,r) = 1`. Given a set :math:`H` of harmful
states and :math:`0 \le \delta < 1`, it is :math:`\delta`-*absorbing* if

1. :math:`|Q(r,r) - 1| \le \delta`: a refusal, once begun, goes on; and
2. :math:`Q(r,H) = \sum_{h \in H} Q(r,h) \le \delta`: what escapes does not turn harmful.

These two conditions are our reading of a summary of arXiv 2502.00669. For a stochastic row the first implies
the second, since :math:`Q(r,H) \le 1 - Q(r,r)`. An additive update that is not projected can leave rows that
are not stochastic, and there the two are independent.

**Facts.** Let :math:`A` be a set of target states and :math:`T` the block of :math:`Q` on the states outside
:math:`A` that can reach :math:`A`. Then :math:`I - T` is invertible and

* :math:`N = (I - T)^{-1}`, the *fundamental matrix*, holds expected numbers of visits;
* :math:`h = N\,Q(\cdot, A)\mathbf 1` holds the probabilities of ever hitting :math:`A`;
* :math:`N \mathbf 1` holds the expected numbers of steps until :math:`A`, where :math:`A` is hit with
  probability one.

Every function here makes one LU factorisation, dense or sparse as its argument is. The diagonal of :math:`I -
T` is computed as the mass that leaves each state, so an escape probability of 1e-20 is not lost beside the
one it came from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg

from safetylib.chain.checks import check_range, check_square, check_states, check_transition_matrix


class Gap(NamedTuple):
    """How far a state is from being absorbing: both numbers of the definition."""

    escape: float  #: :math:`|Q(r,r) - 1|`
    leak: float  #: :math:`Q(r,H)`


def absorption_gap(matrix, state: int, harmful) -> Gap:
    r"""Both quantities of the definition of a :math:`\delta`-absorbing state.

    Parameters
    ----------
    matrix
        (n, n) array or scipy-sparse matrix. It need not be stochastic: an unprojected update is judged as it
        is.
    state
        The refusal state.
    harmful
        Indices of the harmful states, ``state`` not among them.

    Returns
    -------
    Gap
        ``(escape, leak)``. The state is delta-absorbing iff both are at most delta.
    """
    matrix = check_square("matrix", matrix)
    (state,) = check_states("state", state, matrix.shape[0])
    harmful = check_states("harmful", harmful, matrix.shape[0])
    if state in harmful:
        raise ValueError(f"harmful must not contain the refusal state, got {state}")
    row = matrix[[state]].toarray()[0] if sp.issparse(matrix) else matrix[state]
    return Gap(float(abs(row[state] - 1)), float(row[harmful].sum()))


def is_delta_absorbing(matrix, state: int, harmful, delta: float) -> bool:
    r"""Whether both conditions of the definition hold, on the matrix as it is, stochastic or not."""
    check_range("delta", delta, "[0, 1)")
    return max(absorption_gap(matrix, state, harmful)) <= delta


def absorbing_states(matrix) -> np.ndarray:
    """The states that are never left: those whose row has no entry off the diagonal."""
    matrix = check_transition_matrix("matrix", matrix)
    return np.flatnonzero(_leaving(matrix) == 0)


def fundamental_matrix(matrix, targets=None) -> np.ndarray:
    r"""The fundamental matrix :math:`N = (I - T)^{-1}`: expected visits before the targets are hit.

    Parameters
    ----------
    matrix
        (n, n) transition matrix, dense or scipy-sparse.
    targets
        States at which the chain is stopped; by default the absorbing states.

    Returns
    -------
    ndarray
        (m, m), dense, over the m states outside ``targets``, in order. Entry (i, j) is the expected number of
        visits to j, the start included, for a chain started in i.

    Raises
    ------
    ValueError
        If some state cannot reach the targets (visits would be infinite).
    """
    matrix, targets = _stopped(matrix, targets)
    inside = np.setdiff1d(np.arange(matrix.shape[0]), targets)
    lost = np.setdiff1d(inside, _can_reach(matrix, targets))
    if lost.size:
        raise ValueError(f"targets must be reachable from every state, got state {lost[0]}, which cannot reach them")
    return _solver(matrix, inside)(np.eye(inside.size))


def absorption_probabilities(matrix, targets=None) -> np.ndarray:
    """The law of the first target that the chain hits.

    Parameters
    ----------
    matrix
        (n, n) transition matrix, dense or scipy-sparse.
    targets
        k states at which the chain is stopped; by default the absorbing states.

    Returns
    -------
    ndarray
        (n, k). Entry (i, a) is the probability that the first target hit from i is the a-th. Rows sum to the
        probability of hitting any, which is below one where the chain can get caught elsewhere.
    """
    matrix, targets = _stopped(matrix, targets)
    law = np.zeros((matrix.shape[0], targets.size))
    law[targets, np.arange(targets.size)] = 1
    inside = np.setdiff1d(_can_reach(matrix, targets), targets)
    if inside.size:
        entry = matrix[inside][:, targets]
        law[inside] = _solver(matrix, inside)(entry.toarray() if sp.issparse(entry) else entry)
    return np.clip(law, 0, 1)


def hitting_probabilities(matrix, targets) -> np.ndarray:
    """The probability of ever hitting the set ``targets``, from every state.

    Parameters
    ----------
    matrix
        (n, n) transition matrix, dense or scipy-sparse. A million states take seconds where elimination fills in little, as in
        a chain along positions.
    targets
        The states to be hit.

    Returns
    -------
    ndarray
        (n,): one on the targets, zero exactly where they cannot be reached.
    """
    matrix, targets = _stopped(matrix, targets)
    probability = np.zeros(matrix.shape[0])
    probability[targets] = 1
    inside = np.setdiff1d(_can_reach(matrix, targets), targets)
    if inside.size:
        entry = np.asarray(matrix[inside][:, targets].sum(axis=1)).ravel()
        probability[inside] = _solver(matrix, inside)(entry)
    return np.clip(probability, 0, 1)


def expected_steps(matrix, targets) -> np.ndarray:
    """The expected number of steps until ``targets`` is hit, from every state.

    Returns
    -------
    ndarray
        (n,): zero on the targets, infinite where they are missed with positive probability.
    """
    matrix, targets = _stopped(matrix, targets)
    states = np.arange(matrix.shape[0])
    stopped_short = np.setdiff1d(states, _can_reach(matrix, targets))
    without_targets = _without_rows(matrix, targets)
    may_miss = _can_reach(without_targets, stopped_short) if stopped_short.size else stopped_short
    steps = np.zeros(matrix.shape[0])
    steps[may_miss] = np.inf
    steps[targets] = 0
    inside = np.setdiff1d(states, np.union1d(may_miss, targets))
    if inside.size:
        steps[inside] = _solver(matrix, inside)(np.ones(inside.size))
    return steps


def _stopped(matrix, targets):
    """Both arguments checked; the absorbing states where no targets are given."""
    matrix = check_transition_matrix("matrix", matrix)
    targets = absorbing_states(matrix) if targets is None else check_states("targets", targets, matrix.shape[0])
    if not targets.size:
        raise ValueError("targets must hold a state, got none")
    return matrix, targets


def _leaving(matrix) -> np.ndarray:
    """The mass that leaves each state, summed off the diagonal."""
    if sp.issparse(matrix):
        return np.asarray((matrix - sp.diags_array(matrix.diagonal())).sum(axis=1)).ravel()
    off_diagonal = matrix.copy()
    np.fill_diagonal(off_diagonal, 0)
    return off_diagonal.sum(axis=1)


def _without_rows(matrix, rows):
    """The matrix with some rows emptied: the chain dies there."""
    keep = np.ones(matrix.shape[0])
    keep[rows] = 0
    return sp.diags_array(keep) @ matrix if sp.issparse(matrix) else keep[:, None] * matrix


def _can_reach(matrix, targets: np.ndarray) -> np.ndarray:
    """The states, ``targets`` included, from which some target is reached with positive probability."""
    size = matrix.shape[0]
    if not sp.issparse(matrix):
        return np.flatnonzero(_reached(matrix > 0, targets))
    backwards = sp.csr_array(matrix).T
    source = sp.csr_array((np.ones(targets.size), (np.zeros(targets.size, int), targets)), shape=(1, size))
    graph = sp.block_array([[backwards, None], [source, sp.csr_array((1, 1))]], format="csr")
    order = sp.csgraph.breadth_first_order(graph, size, return_predecessors=False)
    return np.sort(order[order < size])


def _reached(edges: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Backwards from the targets along a boolean (n, n) table of edges; every state is looked at once."""
    reached = np.zeros(len(edges), dtype=bool)
    reached[targets] = True
    frontier = targets
    while frontier.size:
        fresh = edges[:, frontier].any(axis=1) & ~reached
        reached |= fresh
        frontier = np.flatnonzero(fresh)
    return reached


def _solver(matrix, inside: np.ndarray):
    """Factorise :math:`I - T` on the states ``inside`` once; return ``right-hand side -> solution``."""
    leaving = _leaving(matrix)[inside]
    if sp.issparse(matrix):
        block = matrix[inside][:, inside]
        off_diagonal = block - sp.diags_array(block.diagonal())
        return sp.linalg.splu(sp.csc_array(sp.diags_array(leaving) - off_diagonal)).solve
    whole = inside.size == inside[-1] - inside[0] + 1
    block = (slice(inside[0], inside[-1] + 1),) * 2 if whole else np.ix_(inside, inside)
    system = np.negative(matrix[block])
    np.fill_diagonal(system, leaving)
    # The transpose lies in memory as LAPACK wants it, so nothing is copied.
    factors = scipy.linalg.lu_factor(system.T, overwrite_a=True, check_finite=False)
    return lambda right: scipy.linalg.lu_solve(factors, right, trans=1, check_finite=False)
