r"""Arms at one over-refusal: an arm that refuses more of everything is not safer for it.

An arm's *frontier* is what votes of all its members reach: with quorum q, a share of benign prompts refused and a share of safe
outputs, from the vote that never refuses to the one that always does. Between two quorums lies the vote that tosses a coin for
which of them to use, so the frontier is a line from point to point, and every arm can be compared at every over-refusal.

Intervals are a jackknife's: one seed left out of both arms, one harmful prompt, one benign prompt, each a source of variation of
its own.
"""

from __future__ import annotations

import numpy as np

from safetylib.stats import Estimate, jackknife
from safetylib.study import width
from safetylib.study.diagnostics import MOST_OVER_REFUSAL
from safetylib.study.results import Results
from safetylib.study.votes import member_table


def frontier(harmful: np.ndarray, benign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over-refusal and safe outputs of every quorum of all members, from never refusing to always.

    Parameters
    ----------
    harmful
        Refusals, (conditions, members, prompts).
    benign
        Refusals, (members, prompts).

    Returns
    -------
    over, safe
        Both of shape (members + 2,), non-decreasing from 0 to 1.
    """
    quorums = np.arange(benign.shape[0] + 1, -1, -1)
    over, safe = (
        np.array([(refused.sum(axis=-2) >= quorum).mean() for quorum in quorums]) for refused in (benign, harmful)
    )
    return over, safe


def safe_at(harmful: np.ndarray, benign: np.ndarray, level: float) -> float:
    """Share of safe outputs on an arm's frontier, where a share ``level`` of benign prompts is refused.

    Raises
    ------
    ValueError
        The level lies outside 0 ... 1.
    """
    if not 0 <= level <= 1:
        raise ValueError(f"an over-refusal is a share between 0 and 1, got {level}")
    over, safe = frontier(harmful, benign)
    return float(np.interp(level, *_steepest(over, safe)))


def _steepest(over: np.ndarray, safe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frontier without quorums that refuse as much and are less safe: ``numpy.interp`` wants increasing points."""
    last = np.append(np.diff(over) > 0, True)
    return over[last], safe[last]


def difference(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], level: float) -> Estimate:
    """Safe outputs of one arm minus another's where both refuse a share ``level`` of benign prompts, with its 95 % interval.

    Each arm is its (harmful, benign) refusals as for :func:`frontier`; members are paired by seed, prompts are the same.
    """

    def apart(members: np.ndarray, harmful: np.ndarray, benign: np.ndarray) -> float:
        values = [safe_at(h[:, members][:, :, harmful], b[members][:, benign], level) for h, b in (first, second)]
        return values[0] - values[1]

    seeds, harmful, benign = first[1].shape[0], first[0].shape[2], first[1].shape[1]
    return jackknife(apart, (seeds, harmful, benign), harmful, seeds)


def refusals(results: Results, arm: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """An arm's refusals of harmful prompts at the headline depths, and of benign ones of a kind."""
    members = width.members_of(results, arm)
    return width.headline_votes(results, members), member_table(results, members, "refused", 0, kind).astype(bool)


def level(results: Results, kind: str) -> float:
    """The over-refusal at which arms are compared: of plain prompts the operating point's target; of borderline ones, which
    have none, what a single member of a trained arm refuses in the mean."""
    if kind == "plain":
        return MOST_OVER_REFUSAL
    arms = [arm for arm in results.arms if arm != "base"]
    return float(np.mean([results.table(arm, kind=kind).mean() for arm in arms]))


def contrast(results: Results, other: str, kind: str) -> Estimate:
    """Cyclic minus another arm, safe outputs at the headline depths, at the :func:`level` of a benign kind."""
    cyclic, against = (refusals(results, arm, kind) for arm in ("cyclic", other))
    return difference(cyclic, against, level(results, kind))
