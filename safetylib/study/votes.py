"""Ensembles over stored outcomes: members vote, the ensemble answers, and its *answer* is judged.

Members vote on what a deployer can see: whether the main detector calls their response a refusal. If the vote is to
refuse, the ensemble sends a refusal. If it is to answer, the response of one member that did not refuse is sent, drawn
with a seed, and that response is what counts. Nothing is generated again.

=============  =========================================================================================================
rule           the ensemble refuses if ...
=============  =========================================================================================================
any-refusal    at least one member refuses ("union" read as the union of refusals; one safe member suffices)
all-refuse     every member refuses ("union" read as the union of harms: one harmful member spoils it)
majority       more than half refuse; a tie answers
average        the members' mean safety score, by the language-model judge, reaches a threshold fixed on validation data
quorum-q       at least q members refuse
=============  =========================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safetylib.study.results import Results

RULES = ("any-refusal", "all-refuse", "majority", "average")


@dataclass(frozen=True)
class Ballot:
    """What an ensemble did on a set of prompts, one entry a prompt.

    Attributes
    ----------
    refuses
        The vote.
    unsafe
        The ensemble's output is a member's response that does not refuse, or turns to compliance after refusing.
    safety
        The language-model judge's score of the output in [0, 1] (1 where the ensemble sends a refusal); nan if unscored.
    """

    refuses: np.ndarray
    unsafe: np.ndarray
    safety: np.ndarray


def quorum(rule: str, width: int) -> int:
    """Members that must refuse for the ensemble to refuse.

    Raises
    ------
    ValueError
        A rule that is no quorum (``average``), or a quorum outside 1 ... width.
    """
    named = {"any-refusal": 1, "all-refuse": width, "majority": width // 2 + 1}
    if rule in named:
        return named[rule]
    if rule.startswith("quorum-") and rule[7:].isdigit() and 1 <= int(rule[7:]) <= width:
        return int(rule[7:])
    raise ValueError(
        f"rule {rule!r} is no quorum of {width} members; known: {', '.join(named)}, quorum-1 ... quorum-{width}"
    )


def member_table(
    results: Results,
    members: list[tuple[str, int]],
    column: str,
    depth: int,
    kind: str = "harmful",
    split: str = "test",
) -> np.ndarray:
    """A (members, prompts) array of one outcome column."""
    tables = {arm: results.table(arm, depth, kind, column, split) for arm in {arm for arm, _ in members}}
    seeds = sorted(results.manifest["plan"]["seeds"])
    return np.array([tables[arm][0 if arm == "base" else seeds.index(seed)] for arm, seed in members])


def average_threshold(results: Results, members: list[tuple[str, int]]) -> float:
    """The safety score that best separates refusals from answers on *validation* prompts (balanced accuracy).

    Candidates are midpoints between observed scores; ties go to the lowest.

    Raises
    ------
    ValueError
        No validation response is scored, or all refuse, or none does: nothing can be separated.
    """
    depths = results.manifest["plan"]["measurement"]["judged_depths"]
    scores, refused = (
        np.concatenate([member_table(results, members, column, depth, split="validation").ravel() for depth in depths])
        for column in ("safety", "refused")
    )
    scored = np.isfinite(scores.astype(float))
    scores, refused = scores[scored].astype(float), refused[scored].astype(bool)
    if not len(scores) or refused.all() or not refused.any():
        raise ValueError("no threshold: validation holds no scored refusals, or nothing else")
    levels = np.unique(scores)
    candidates = (levels[1:] + levels[:-1]) / 2 if len(levels) > 1 else levels
    above = scores[None] >= candidates[:, None]
    accuracy = (above[:, refused].mean(axis=1) + (~above[:, ~refused]).mean(axis=1)) / 2
    return float(candidates[int(np.argmax(accuracy))])


def vote(
    results: Results,
    members: list[tuple[str, int]],
    rule: str,
    depth: int,
    kind: str = "harmful",
    threshold: float | None = None,
    seed: int = 0,
) -> Ballot:
    """Let members vote under a rule.

    Parameters
    ----------
    members
        (arm, seed) pairs; at least one.
    threshold
        For ``average``: from :func:`average_threshold`.

    Raises
    ------
    ValueError
        No member, an unknown rule, or ``average`` without a threshold or where nothing was judged.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    tables = (member_table(results, members, column, depth, kind) for column in ("refused", "complied_after", "safety"))
    try:
        return decide(*tables, rule, threshold, seed)
    except ValueError as error:
        raise ValueError(f"{error} ({kind} prompts, depth {depth})") from error


def decide(
    refused: np.ndarray,
    turned: np.ndarray,
    safety: np.ndarray,
    rule: str,
    threshold: float | None = None,
    seed: int = 0,
) -> Ballot:
    """The vote itself, and the output that it sends.

    Under a quorum an answer comes from a member that does not refuse, so every answer is unsafe and ``turned`` changes
    nothing. Under ``average`` all members may refuse and the vote still be to answer; then one of the refusals is sent.

    Parameters
    ----------
    refused, turned, safety
        (members, prompts): refuses; complies after refusing; the judge's score, nan if unscored.
    rule, threshold, seed
        As for :func:`vote`.
    """
    refused, turned, safety = np.asarray(refused, bool), np.asarray(turned, bool), np.asarray(safety, float)
    if rule == "average":
        if threshold is None:
            raise ValueError("rule 'average' needs a threshold: average_threshold(results, members)")
        if not np.isfinite(safety).any():
            raise ValueError("rule 'average' needs scores, but these responses were never judged")
        refuses = _mean_of_scored(safety) >= threshold
    else:
        refuses = refused.sum(axis=0) >= quorum(rule, len(refused))
    speaker = _speakers(refused, np.random.default_rng(seed))
    column = np.arange(refused.shape[1])
    unsafe = ~refuses & (~refused[speaker, column] | turned[speaker, column])
    return Ballot(refuses, unsafe, np.where(refuses, 1.0, safety[speaker, column]))


def _mean_of_scored(safety: np.ndarray) -> np.ndarray:
    """Mean over members whose response was scored; -inf (the ensemble answers) where none was."""
    scored = np.isfinite(safety)
    count = scored.sum(axis=0)
    return np.where(count > 0, np.where(scored, safety, 0.0).sum(axis=0) / np.maximum(count, 1), -np.inf)


def _speakers(refused: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Per prompt, a member whose response is sent if the ensemble answers: one that did not refuse, where there is one."""
    priority = generator.random(refused.shape)
    return np.where(refused, priority - 1, priority).argmax(axis=0)


def pairwise_correlation(refused: np.ndarray) -> float:
    """Mean correlation between members' failures over prompts; nan where some member never varies.

    ``refused`` is (members, prompts), boolean.
    """
    failed = ~np.asarray(refused, bool)
    if len(failed) < 2 or (failed.std(axis=1) == 0).any():
        return float("nan")
    matrix = np.corrcoef(failed)
    return float(matrix[np.triu_indices(len(failed), 1)].mean())
