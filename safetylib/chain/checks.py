"""What every function of ``safetylib.chain`` checks about its arguments.

A bad argument raises :class:`ValueError` with its name and the offending value. Nothing is repaired silently.
"""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from functools import cache

import numpy as np
import scipy.sparse as sp

ROW_SUM_TOLERANCE = 1e-9


def check_range(name: str, value, interval: str) -> np.ndarray:
    """Return ``value`` as a float array whose entries all lie in ``interval``.

    Parameters
    ----------
    name
        The argument's name, for the message.
    value
        A number or an array of numbers.
    interval
        In the notation of mathematics: ``"[0, 1]"``, ``"(0, 1]"``, ``"[0, inf)"``, ``"(-inf, inf)"``. An
        infinite end that is closed, as in ``"[0, inf]"``, admits infinity.

    Raises
    ------
    ValueError
        If an entry lies outside or is not a number.
    """
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numeric, got {value!r}") from None
    if not array.size:
        return array
    low, high = _ends(interval)
    # Two numbers are compared much faster than all entries; where one entry is no number, so are the least and the most.
    least, most = (array.min(), array.max()) if array.ndim else (array.item(),) * 2
    if not (low <= least and most <= high):
        outside = array[~((low <= array) & (array <= high))]
        raise ValueError(f"{name} must lie in {interval}, got {outside.flat[0]:g}")
    return array


@cache
def _ends(interval: str) -> tuple[float, float]:
    """The smallest and the largest float in an interval."""
    low, high = map(float, interval[1:-1].split(","))
    return low if interval[0] == "[" else math.nextafter(low, math.inf), (
        high if interval[-1] == "]" else math.nextafter(high, -math.inf)
    )


def check_count(name: str, value, *, at_least: int = 0, infinite: bool = False) -> np.ndarray:
    """Return ``value`` as a float array of whole numbers, none below ``at_least``.

    Infinity passes only if ``infinite`` is true.
    """
    array = check_range(name, value, f"[{at_least}, inf{']' if infinite else ')'}")
    if np.asarray(value).dtype.kind not in "iu":  # integers are whole
        broken = array != np.floor(array)  # infinity equals its floor, and what is no number has been refused
        if broken.any():
            raise ValueError(f"{name} must be a whole number, got {array[broken].flat[0]:g}")
    return array


def check_square(name: str, matrix, *, dense: bool = False):
    """Return a finite square matrix: a float array, or CSR without explicit zeros if it is scipy-sparse.

    With ``dense`` a scipy-sparse matrix is refused.
    """
    if sp.issparse(matrix):
        if dense:
            raise ValueError(f"{name} must be a dense array, got a sparse one of shape {matrix.shape}: use .toarray()")
        matrix = matrix.tocsr(copy=True).astype(float)
        matrix.eliminate_zeros()
        entries = matrix.data
    else:
        try:
            entries = matrix = np.asarray(matrix, dtype=float)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a numeric matrix, got {matrix!r}") from None
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{name} must be a square matrix, got shape {matrix.shape}")
    if not np.isfinite(entries).all():
        raise ValueError(f"{name} must be finite, got an entry {entries[~np.isfinite(entries)].flat[0]:g}")
    return matrix


def check_transition_matrix(name: str, matrix, *, dense: bool = False):
    """Return ``matrix`` as :func:`check_square` does, after checking that its rows are distributions.

    Raises
    ------
    ValueError
        If an entry is negative or a row does not sum to one within ``ROW_SUM_TOLERANCE``; names row and
        value.
    """
    matrix = check_square(name, matrix, dense=dense)
    lowest = matrix.min()
    if lowest < 0:
        raise ValueError(f"{name} must be non-negative, got an entry {lowest:g}")
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(f"{name} must have rows that sum to 1, got row {worst} with sum {sums[worst]:.12g}")
    return matrix


def check_states(name: str, states, size: int) -> np.ndarray:
    """Return ``states``, one index or several, as a sorted array of distinct indices below ``size``."""
    array = np.unique(check_count(name, np.atleast_1d(states)))
    if array.size and array[-1] >= size:
        raise ValueError(f"{name} must be states below {size}, got {array[-1]:g}")
    return array.astype(int)


def as_written(x: float) -> decimal.Decimal:
    """A float as the number that was meant: the fraction with denominator up to a million that rounds to it, if there is one
    (0.1 as 1/10), else its exact value; to the precision of the decimal context."""
    simple = Fraction(x).limit_denominator(10**6)
    exact = simple if float(simple) == x else Fraction(x)
    return decimal.Decimal(exact.numerator) / decimal.Decimal(exact.denominator)
