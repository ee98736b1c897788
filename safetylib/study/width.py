r"""Width: ensembles of every size from stored votes, what the members share, and what models of them predict.

**Every subset.** With S members of which r refuse a prompt, a subset of W members drawn at random holds at least q refusals
with probability :math:`P(\mathrm{Hypergeometric}(S, r, W)\ge q)`. That is the mean over all :math:`\binom SW` ensembles, exactly, so
no subset is singled out. Under a quorum an answer always comes from a member that did not refuse
(:func:`safetylib.study.votes.decide`): the share of votes to refuse *is* the share of safe outputs.

**Intervals.** Subsets overlap, so they are no replicates. The mean over subsets is a U-statistic of the members; its
jackknife pseudo-values :math:`S\,U-(S-1)\,U_{-i}` form a (members, prompts) table with the same mean, and
:func:`safetylib.stats.crossed` treats it like any other: prompts crossed with seeds. With W = 1 it is the table of
outcomes itself. With W = S no other ensemble is left; such intervals resample prompts alone and are *given the members*.
They say nothing about other seeds.

**Predictions.** From single members (risk p) and pairs (correlation rho) the models of :mod:`safetylib.chain.ensemble` predict
wider ensembles. The beta-binomial and the copula meet W = 2 by construction; what they risk is W >= 3.

Arrays of votes are (members, prompts), or (conditions, members, prompts) for a mean over conditions such as depths.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import hypergeom
from statsmodels.stats.weightstats import CompareMeans

from safetylib import stats
from safetylib.chain import ensemble, tradeoff
from safetylib.study.results import Results
from safetylib.study.votes import decide, member_table, quorum

QUORUM_RULES = ("any-refusal", "majority", "all-refuse")
MODELS = ensemble.MODELS
_CHAIN_RULES = {"any-refusal": "any-refusal", "majority": "majority", "all-refuse": "any-harmful"}

# --- ensembles of every subset ----------------------------------------------------------------------------------------


def members_of(results: Results, *arms: str) -> list[tuple[str, int]]:
    """(arm, seed) of every trained member of these arms."""
    return [(arm, seed) for arm in arms for seed in sorted(results.manifest["plan"]["seeds"])]


def headline_votes(results: Results, members: list[tuple[str, int]]) -> np.ndarray:
    """Refusals at the headline depths, (depths, members, prompts)."""
    return np.array([member_table(results, members, "refused", depth) for depth in results.headline], bool)


def refusing(refused: np.ndarray, width: int, rule: str) -> np.ndarray:
    """Per prompt, the share of all ensembles of ``width`` members that refuse, (prompts,); a mean over conditions.

    Raises
    ------
    ValueError
        More members than there are, or a rule that is no quorum.
    """
    refused = _conditions(refused)
    members = refused.shape[1]
    if not 1 <= width <= members:
        raise ValueError(f"an ensemble of {width} needs as many members; there are {members}")
    share = hypergeom.sf(quorum(rule, width) - 1, members, refused.sum(axis=1), width)
    return np.clip(share, 0, 1).mean(axis=0)


def pseudo_values(refused: np.ndarray, width: int, rule: str) -> np.ndarray:
    """Jackknife pseudo-values of :func:`refusing`, (members, prompts); one row if ``width`` takes every member."""
    refused = _conditions(refused)
    members = refused.shape[1]
    whole = refusing(refused, width, rule)
    if width == members:
        return whole[None]
    without = [refusing(np.delete(refused, member, axis=1), width, rule) for member in range(members)]
    return members * whole - (members - 1) * np.array(without)


def estimates(
    tables: dict[str, np.ndarray], width: int, rule: str, given_members: bool = False
) -> dict[str, stats.Estimate]:
    """Share of ensembles of ``width`` that refuse, with a 95 % interval, for a family of arms.

    Parameters
    ----------
    tables
        Name to votes.
    given_members
        Resample prompts alone. So it is in any case where ``width`` takes every member.
    """
    whole = {name: _conditions(refused) for name, refused in tables.items()}
    values = {
        name: refusing(refused, width, rule)[None] if given_members else pseudo_values(refused, width, rule)
        for name, refused in whole.items()
    }
    family = list(values.values())
    return {name: stats.crossed(table, family, share=True) for name, table in values.items()}


def outcome_table(results: Results, arms: list[str], widths: list[int], rules: tuple[str, ...]) -> pd.DataFrame:
    """Safe outputs (mean over the headline depths) beside benign prompts refused, a row per (arm, width, rule).

    A vote that refuses everything would be safe, and useless: the three are never given apart. Cells are
    :class:`safetylib.stats.Estimate`; the last column says what their intervals resample.
    """
    every = {arm: members_of(results, arm) for arm in arms}
    tables = {
        "safe outputs": {arm: headline_votes(results, team) for arm, team in every.items()},
        "plain refused": {arm: member_table(results, team, "refused", 0, "plain") for arm, team in every.items()},
        "borderline refused": {
            arm: member_table(results, team, "refused", 0, "borderline") for arm, team in every.items()
        },
    }
    rows = {}
    for members in widths:
        for rule in rules:
            found = {name: estimates(family, members, rule) for name, family in tables.items()}
            for arm in arms:
                over = "prompts" if members == len(every[arm]) else "prompts, seeds"
                rows[arm, members, rule] = {name: found[name][arm] for name in tables} | {"interval over": over}
    keys = [(arm, members, rule) for arm in arms for members in widths for rule in rules]
    return pd.DataFrame.from_dict(
        {key: rows[key] for key in keys}, orient="index", columns=[*tables, "interval over"]
    ).rename_axis(["members", "W", "rule"])


def net_gain(harmful: np.ndarray, benign: np.ndarray, width: int, rule: str) -> stats.Estimate:
    """Safe outputs minus benign prompts refused: an ensemble's value of it, minus a single member's.

    Positive where a vote gains more than it moves along the trade-off. Every member is the same on both sides, and the two
    kinds of prompts are independent: Welch's 95 % interval, over prompts *given the members*.
    """
    gains = [refusing(refused, width, rule) - refusing(refused, 1, "majority") for refused in (harmful, benign)]
    welch = CompareMeans.from_data(*gains)
    low, high = welch.tconfint_diff(usevar="unequal")
    mean, error, freedom = gains[0].mean() - gains[1].mean(), welch.std_meandiff_separatevar, welch.dof_satt()
    return stats.Estimate(float(mean), float(low), float(high), float(error), float(freedom), sum(map(len, gains)), 1)


def _over_prompts(shares: list[np.ndarray]) -> stats.Estimate:
    """Mean over ensembles and prompts of (prompts,) outcomes, one an ensemble, with an interval *given the members*."""
    return stats.crossed(np.mean(shares, axis=0)[None], share=True)


def averaged(
    results: Results, members: list[tuple[str, int]], width: int, depth: int, threshold: float
) -> stats.Estimate:
    """Share of safe outputs under the rule ``average``, over every ensemble of ``width``; the interval is given the members."""
    columns = [member_table(results, members, name, depth) for name in ("refused", "complied_after", "safety")]
    ballots = [
        decide(*(column[list(subset)] for column in columns), "average", threshold)
        for subset in combinations(range(len(members)), width)
    ]
    return _over_prompts([~ballot.unsafe for ballot in ballots])


def average_refuses(
    results: Results, members: list[tuple[str, int]], width: int, kind: str, threshold: float
) -> stats.Estimate:
    """Share of prompts of a kind that the rule ``average`` votes to refuse, over every ensemble of ``width``, no prefix given;
    the interval is given the members.

    The vote alone: what members wrote and the ensemble would send is not looked at, as it is in :func:`averaged`.

    Raises
    ------
    FileNotFoundError
        Answers to benign prompts were never rated (part ``rated``); says how to do it.
    """
    if kind == "harmful":
        safety = member_table(results, members, "safety", 0)
    else:
        safety = _of_members(results.part("rated").query("kind == @kind"), members, "safety").to_numpy(float)
    nothing = np.zeros(safety.shape, bool)
    ballots = [
        decide(nothing[list(subset)], nothing[list(subset)], safety[list(subset)], "average", threshold)
        for subset in combinations(range(len(members)), width)
    ]
    return _over_prompts([ballot.refuses for ballot in ballots])


def part_votes(outcomes: pd.DataFrame, members: list[tuple[str, int]], depth: int, kind: str = "harmful") -> np.ndarray:
    """Refusals of a part's members, (members, prompts), prompts in the order of the main tables.

    Raises
    ------
    KeyError
        A member without outcomes.
    """
    return _of_members(outcomes.query("depth == @depth and kind == @kind"), members, "refused").to_numpy(bool)


def _of_members(rows: pd.DataFrame, members: list[tuple[str, int]], column: str) -> pd.DataFrame:
    """A column of a part's rows, a row per member and a column per prompt."""
    table = rows.pivot(index=["arm", "seed"], columns="prompt", values=column).sort_index(axis=1)
    if missing := [member for member in members if member not in table.index]:
        raise KeyError(f"no {column} for {missing[0]} in these rows of a part")
    return table.loc[members]


def data_groups(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """Votes of cyclic members trained on the same data, and of teams of three trained on disjoint thirds of it.

    Returns
    -------
    dict
        Kind of prompts to ``same`` and ``disjoint``, each (depths times teams, members, prompts); harmful ones at the headline
        depths. There is one team on the same data, which stands beside each of the others.

    Raises
    ------
    FileNotFoundError
        The ablations were never measured; says how to do it.
    """
    outcomes, team = results.part("ablations"), members_of(results, "cyclic")
    seeds = sorted(outcomes.query("arm == 'disjoint0'")["seed"].unique())
    teams = [[(f"disjoint{fold}", seed) for fold in range(3)] for seed in seeds]
    depths = {"harmful": results.headline, "plain": [0], "borderline": [0]}
    return {
        kind: {
            "same": np.repeat(
                [member_table(results, team, "refused", depth, kind) for depth in chosen], len(teams), axis=0
            ).astype(bool),
            "disjoint": np.array([part_votes(outcomes, apart, depth, kind) for depth in chosen for apart in teams]),
        }
        for kind, chosen in depths.items()
    }


def data_table(results: Results) -> pd.DataFrame:
    """Votes of three members of :func:`data_groups`, a row per (training data, rule), intervals given the members."""
    groups, rows = data_groups(results), {}
    names = {"harmful": "safe outputs", "plain": "plain refused", "borderline": "borderline refused"}
    for data in ("same", "disjoint"):
        alike = correlation(groups["harmful"][data])
        for label, members, rule in (("one member", 1, "majority"), *((rule, 3, rule) for rule in QUORUM_RULES)):
            shares = {
                names[kind]: estimates({data: both[data]}, members, rule, given_members=True)[data]
                for kind, both in groups.items()
            }
            rows[data, label] = shares | {"correlation": alike}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["training data", "vote"])


# --- what members share -----------------------------------------------------------------------------------------------


def exchangeable(refused: np.ndarray) -> tuple[float, float]:
    """Members' mean risk (share that does not refuse) and the correlation of two members' failures.

    The correlation is that of a model in which members are alike: the mean over pairs of the share on which both fail,
    minus the squared risk, over the variance; nan with a single member, or where nothing varies.

    Parameters
    ----------
    refused
        (members, prompts).
    """
    failed = ~np.asarray(refused, bool)
    members, fails = len(failed), failed.sum(axis=0)
    risk = float(failed.mean())
    if members < 2 or risk in (0.0, 1.0):
        return risk, float("nan")
    both = float((fails * (fails - 1)).mean()) / (members * (members - 1))
    return risk, (both - risk**2) / (risk * (1 - risk))


def alike(refused: np.ndarray) -> float:
    """Covariance of two members' failures over the product of their standard deviations, each a mean over pairs.

    Independent members have 0 whatever their risks; :func:`exchangeable`, whose model has one risk, has less than that where
    risks differ. nan if no two members vary. ``refused`` is (members, prompts).
    """
    matrix = np.cov(~np.asarray(refused, bool), ddof=0).reshape(len(refused), -1)
    pairs, spread = np.triu_indices(len(matrix), 1), np.sqrt(matrix.diagonal())
    most = np.outer(spread, spread)[pairs].sum()
    return float(matrix[pairs].sum() / most) if most else float("nan")


def given_members(statistic: Callable[..., float], *teams: np.ndarray) -> stats.Estimate:
    """A statistic of votes, a mean over conditions, with a 95 % interval over prompts *given the members*.

    The jackknife leaves prompts out one by one; one value serves all prompts on which the members vote the same. It sees no joint
    failure that did not happen among the prompts: where these are rare, the interval ends too low.

    Parameters
    ----------
    statistic
        Of one (members, prompts) table per team.
    teams
        (members, prompts) or (conditions, members, prompts), with the same conditions and prompts.

    Raises
    ------
    ValueError
        The statistic is undefined (nan) with or without some prompt.
    """
    values = []
    for tables in zip(*map(_conditions, teams), strict=True):
        columns = np.concatenate(tables)
        _, first, place = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        without = [statistic(*(np.delete(table, prompt, axis=1) for table in tables)) for prompt in first]
        prompts = columns.shape[1]
        values.append(prompts * statistic(*tables) - (prompts - 1) * np.array(without)[place.ravel()])
    if not np.isfinite(values).all():
        raise ValueError("the statistic is undefined for these votes: in some condition nothing varies")
    return stats.crossed(np.mean(values, axis=0)[None])


def correlation(refused: np.ndarray, other: np.ndarray | None = None) -> stats.Estimate:
    """Correlation of two members' failures (:func:`alike`) given the members; with ``other``, minus that team's."""
    if other is None:
        return given_members(alike, refused)
    return given_members(lambda one, two: alike(one) - alike(two), refused, other)


def between(first: np.ndarray, second: np.ndarray) -> float:
    """Mean correlation between the failures of members of two teams, over pairs in which both vary."""
    varying = [[votes for votes in team if votes.any() and not votes.all()] for team in (first, second)]
    pairs = list(product(*varying))
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs])) if pairs else float("nan")


# --- predicted risk ---------------------------------------------------------------------------------------------------


def latent_correlation(risk: float, correlation: float) -> float:
    """The latent correlation at which a Gaussian copula has this correlation of indicators."""
    if correlation <= 0 or correlation >= 1:
        return float(np.clip(correlation, 0, 1))
    return float(brentq(lambda latent: ensemble.copula_correlation(risk, latent) - correlation, 0, 1))


def predicted_risk(refused: np.ndarray, width: int, rule: str, model: str) -> float:
    """Risk of an ensemble under a model, from its members' mean risk and their correlation.

    A negative correlation counts as none; members that never vary leave nothing to correlate.

    Parameters
    ----------
    refused
        (members, prompts) votes from which both are read.
    model
        One of :data:`MODELS`.
    """
    risk, correlation = exchangeable(refused)
    correlation = 0.0 if model == "independent" or np.isnan(correlation) else float(np.clip(correlation, 0, 1))
    if model == "copula" and 0 < risk < 1:
        correlation = latent_correlation(risk, correlation)
    harmful = width - quorum(rule, width) + 1
    return float(ensemble.risk(risk, width, harmful, model=model, correlation=correlation))


def prediction_table(results: Results, arms: list[str], rules: tuple[str, ...] = QUORUM_RULES) -> pd.DataFrame:
    """Measured risk and every model's, a row per (arm, depth, width >= 2, rule).

    ``low`` and ``high`` end the interval of the measured risk over prompts, given the members; ``single`` is one member's risk.
    """
    rows = []
    for arm in arms:
        members = members_of(results, arm)
        for depth in results.depths:
            refused = member_table(results, members, "refused", depth).astype(bool)
            for width in range(2, len(members) + 1):
                for rule in rules:
                    safe = estimates({arm: refused}, width, rule, given_members=True)[arm]
                    rows.append(
                        {"arm": arm, "depth": depth, "width": width, "rule": rule, "single": 1 - refused.mean()}
                        | {"measured": 1 - safe.mean, "low": 1 - safe.high, "high": 1 - safe.low}
                        | {model: predicted_risk(refused, width, rule, model) for model in MODELS}
                    )
    return pd.DataFrame(rows)


def prediction_error(refused: np.ndarray, width: int, rule: str, model: str) -> stats.Estimate:
    """Measured minus predicted risk, a mean over conditions, with an interval *given the members*.

    Prediction and measurement rest on the same prompts: where one is left out, the model is fitted again.
    """

    def error(votes: np.ndarray) -> float:
        return 1 - float(refusing(votes, width, rule).mean()) - predicted_risk(votes, width, rule, model)

    return given_members(error, refused)


# --- depth and width --------------------------------------------------------------------------------------------------


def safety_map(results: Results, arm: str, rule: str) -> np.ndarray:
    """Measured share of safe outputs, (tested depths, widths 1 ... S)."""
    members = members_of(results, arm)
    tables = [member_table(results, members, "refused", depth).astype(bool) for depth in results.depths]
    widths = range(1, len(members) + 1)
    return np.array([[refusing(table, width, rule).mean() for width in widths] for table in tables])


def updates_map(results: Results, arm: str, rule: str, epsilon: float, model: str = "independent") -> np.ndarray:
    r"""Updates that each member needs for an ensemble's risk of ``epsilon``, (tested depths, widths): the frontier.

    :func:`safetylib.chain.tradeoff.frontier` with, at every tested depth, the untuned model's measured risk as
    :math:`p_0`, and the :math:`\gamma` of the geometric decrease through it and the trained members' measured risk. So
    the designs that were measured are predicted to suffice where the frontier asks for at most the updates they had.
    There it depends on the trained risk alone; for any other number of updates the geometric decrease is an assumption.
    Rates are kept half a prompt from 0 and 1. Infinite where training did not lower the risk.
    """
    members, steps = members_of(results, arm), results.manifest["plan"]["recipe"]["steps"]
    rows = []
    for depth in results.depths:
        refused = member_table(results, members, "refused", depth).astype(bool)
        edge = 0.5 / refused.shape[1]
        risk, correlation = exchangeable(refused)
        correlation = 0.0 if model == "independent" or np.isnan(correlation) else float(np.clip(correlation, 0, 1))
        if model == "copula":
            correlation = latent_correlation(risk, correlation)
        trained = np.clip(risk, edge, 1 - edge)
        untuned = np.clip(1 - results.table("base", depth).mean(), edge, 1 - edge)
        widths = np.arange(1, len(members) + 1)
        if trained >= untuned:
            rows.append(np.full(len(widths), np.inf))
            continue
        setting = {"risk_0": untuned, "gamma": (trained / untuned) ** (1 / steps)}
        options = {"model": model, "correlation": correlation}
        rows.append(tradeoff.frontier(widths, epsilon, _CHAIN_RULES[rule], **setting, **options))
    return np.array(rows, float)


def costs(results: Results) -> pd.DataFrame:
    """Seconds to train one member, and seconds a response of it took, per arm: medians over seeds.

    Responses were generated in batches, and a prompt's depths shared one pass over its prefix, so this is throughput on
    the machine of the manifest and not what a single caller waits.
    """
    seconds = results.timings.set_index("unit")["seconds"]
    responses = results.outcomes.groupby(["arm", "seed"]).size()
    rows = {}
    for arm in results.arms:
        members = [] if arm == "base" else members_of(results, arm)
        if members:
            rows[arm] = {
                "training": np.median([seconds[f"train-{name}-{seed}"] for name, seed in members]),
                "response": np.median(
                    [seconds[f"generate-{name}-{seed}"] / responses[name, seed] for name, seed in members]
                ),
            }
    return pd.DataFrame(rows).T


def _conditions(refused: np.ndarray) -> np.ndarray:
    """(conditions, members, prompts), boolean."""
    refused = np.asarray(refused, bool)
    return refused[None] if refused.ndim == 2 else refused
