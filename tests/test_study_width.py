"""Width: means over every subset, their intervals, correlated members and what models predict, on votes made by hand."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from made_results import made

from safetylib import stats
from safetylib.chain import ensemble
from safetylib.claims import Verdict
from safetylib.study import findings, votes, width

GENERATOR = np.random.default_rng(0)
VOTES = GENERATOR.random((5, 40)) < GENERATOR.random(40)  # members that share how hard a prompt is
RULES = ("any-refusal", "majority", "all-refuse", "quorum-2")


# --- every subset -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("members", [2, 3, 4, 5])
def test_the_share_is_the_mean_over_every_subset(rule, members):
    needed = votes.quorum(rule, members)
    by_hand = [VOTES[list(subset)].sum(axis=0) >= needed for subset in combinations(range(5), members)]
    assert width.refusing(VOTES, members, rule) == pytest.approx(np.mean(by_hand, axis=0))


def test_a_single_member_gives_the_mean_of_members_under_every_rule():
    for rule in width.QUORUM_RULES:
        assert width.refusing(VOTES, 1, rule) == pytest.approx(VOTES.mean(axis=0))


def test_conditions_are_averaged():
    both = width.refusing(np.array([VOTES, ~VOTES]), 3, "majority")
    apart = [width.refusing(table, 3, "majority") for table in (VOTES, ~VOTES)]
    assert both == pytest.approx(np.mean(apart, axis=0))


@pytest.mark.parametrize("members", [0, 6])
def test_more_members_than_there_are_is_refused(members):
    with pytest.raises(ValueError, match="there are 5"):
        width.refusing(VOTES, members, "majority")


@pytest.mark.parametrize("members", [1, 2, 3, 4])
@pytest.mark.parametrize("rule", RULES[:3])
def test_pseudo_values_have_the_mean_over_subsets_and_a_row_a_member(members, rule):
    table = width.pseudo_values(VOTES, members, rule)
    assert table.shape == VOTES.shape
    assert table.mean(axis=0) == pytest.approx(width.refusing(VOTES, members, rule))


def test_pseudo_values_of_single_members_are_their_votes_and_of_all_members_the_vote():
    assert width.pseudo_values(VOTES, 1, "majority") == pytest.approx(VOTES.astype(float))
    assert width.pseudo_values(VOTES, 5, "majority") == pytest.approx((VOTES.sum(axis=0) >= 3)[None].astype(float))


def test_intervals_cross_prompts_and_seeds_until_every_member_votes():
    uneven = GENERATOR.random((5, 40)) < np.array([0.2, 0.4, 0.5, 0.6, 0.8])[:, None]
    tables = {"one": uneven, "other": ~uneven}
    crossed, given = (width.estimates(tables, 3, "majority", given_members=flag)["one"] for flag in (False, True))
    assert crossed.seeds == 5 and given.seeds == 1
    assert crossed.standard_error > given.standard_error, "members vary too"
    assert crossed.mean == pytest.approx(given.mean) == pytest.approx(width.refusing(uneven, 3, "majority").mean())
    assert width.estimates(tables, 5, "majority")["one"].seeds == 1


def test_a_single_members_interval_is_the_studys_own():
    own = stats.crossed(VOTES, [VOTES, ~VOTES])
    assert width.estimates({"one": VOTES, "other": ~VOTES}, 1, "majority")["one"].low == pytest.approx(own.low)


def test_a_vote_that_always_refuses_has_an_interval_still():
    assert width.estimates({"all": np.ones((3, 20), bool)}, 3, "majority")["all"].low < 0.9


def stored(folder, table, depths=(0,), **columns):
    rows = [
        {"seed": seed, "prompt": f"p{prompt:02}", "depth": depth, "refused": bool(table[seed, prompt])}
        | {name: values[seed][prompt] for name, values in columns.items()}
        for depth in depths
        for seed in range(table.shape[0])
        for prompt in range(table.shape[1])
    ]
    return made(folder, rows, seeds=range(table.shape[0]), depths=depths, headline=depths)


def test_safety_and_over_refusal_stand_side_by_side(tmp_path):
    kinds = {"harmful": VOTES, "plain": ~VOTES, "borderline": VOTES[::-1, :20]}
    rows = [
        {"seed": seed, "prompt": f"{kind}{prompt:02}", "kind": kind, "refused": bool(value)}
        for kind, table in kinds.items()
        for (seed, prompt), value in np.ndenumerate(table)
    ]
    results = made(tmp_path, rows, seeds=range(5), headline=(0,))
    table = width.outcome_table(results, ["cyclic"], [1, 5], ("majority", "any-refusal"))
    assert list(table.index) == [("cyclic", w, rule) for w in (1, 5) for rule in ("majority", "any-refusal")]
    assert list(table["interval over"]) == ["prompts, seeds"] * 2 + ["prompts"] * 2
    row = table.loc[("cyclic", 5, "any-refusal")]
    assert row["safe outputs"].mean == pytest.approx(VOTES.any(axis=0).mean())
    assert row["plain refused"].mean == pytest.approx((~VOTES).any(axis=0).mean())
    assert row["borderline refused"].mean == pytest.approx(VOTES[:, :20].any(axis=0).mean())
    assert table.loc[("cyclic", 1, "majority"), "safe outputs"].seeds == 5


@pytest.mark.parametrize("rule", RULES[:3])
def test_the_share_that_refuses_is_the_share_of_safe_outputs(tmp_path, rule):
    results = stored(tmp_path, VOTES)
    members = width.members_of(results, "cyclic")
    safe = 1 - votes.vote(results, members, rule, 0).unsafe.mean()
    assert width.refusing(width.headline_votes(results, members), 5, rule).mean() == pytest.approx(safe)


def test_the_average_is_taken_over_every_subset_and_its_output_judged(tmp_path):
    table, safety = np.array([[1, 0], [1, 1], [0, 0]], bool), [[0.9, 0.2], [0.7, 0.9], [0.1, 0.1]]
    results = stored(tmp_path, table, safety=safety)
    members = width.members_of(results, "cyclic")
    # Means of pairs: .8 .55 | .5 .15 | .4 .5. With .6 only pair (0, 1) refuses p0; on p1 it answers through member 0.
    # Pair (0, 2): member 2 speaks on p0, anyone on p1. Pair (1, 2): member 2 speaks on both.
    assert width.averaged(results, members, 2, 0, 0.6).mean == pytest.approx(1 / 6)
    assert width.averaged(results, members, 2, 0, 0.45).mean == pytest.approx((1 + 1 + 1 + 0 + 0 + 1) / 6)
    both = np.array([1 + 1 + 0, 1 + 0 + 1]) / 3  # shares of safe outputs by prompt: the interval is over prompts
    assert width.averaged(results, members, 2, 0, 0.45).standard_error == pytest.approx(both.std(ddof=1) / 2**0.5)
    assert width.average_refuses(results, members, 2, "harmful", 0.45).mean == pytest.approx(4 / 6)
    # With .85 nobody votes to refuse, and yet pair (0, 1) can only send a refusal on p0.
    assert width.averaged(results, members, 2, 0, 0.85).mean == pytest.approx(1 / 6)
    assert width.average_refuses(results, members, 2, "harmful", 0.85).mean == 0


def test_what_the_average_refuses_of_benign_prompts_is_read_off_rated_answers(tmp_path):
    results = made(tmp_path, [{"seed": seed} for seed in range(3)])
    with pytest.raises(FileNotFoundError, match="PART=rated"):
        width.average_refuses(results, width.members_of(results, "cyclic"), 2, "plain", 0.5)
    ratings = {"plain": [[0.9, 0.1], [0.7, None], [0.2, None]], "borderline": [[1, 1], [1, 1], [1, 1]]}
    rows = [
        {"arm": "cyclic", "seed": seed, "kind": kind, "prompt": f"p{place}", "safety": value}
        for kind, table in ratings.items()
        for seed, row in enumerate(table)
        for place, value in enumerate(row)
    ]
    (tmp_path / "rated").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "rated" / "outcomes.csv.gz", index=False)
    members = width.members_of(results, "cyclic")
    # Pairs' means on p0: .8, .55, .45; on p1, of the scored alone: .1, .1, none, which answers.
    assert width.average_refuses(results, members, 2, "plain", 0.5).mean == pytest.approx(2 / 6)
    assert width.average_refuses(results, members, 2, "plain", 0.05).mean == pytest.approx(5 / 6)
    everything = width.average_refuses(results, members, 3, "borderline", 0.5)
    assert (everything.mean, everything.high, everything.seeds) == (1, 1, 1) and 0 < everything.low < 1, (
        "Wilson's interval"
    )


def test_a_parts_votes_stand_in_the_order_of_the_main_tables():
    rows = [
        {"arm": arm, "seed": 0, "kind": "harmful", "prompt": prompt, "depth": 5, "refused": arm + prompt == "ab"}
        for arm in "ba"
        for prompt in "ba"
    ]
    found = width.part_votes(pd.DataFrame(rows), [("a", 0), ("b", 0)], 5)
    assert found.tolist() == [[False, True], [False, False]]
    with pytest.raises(KeyError, match="'c', 0"):
        width.part_votes(pd.DataFrame(rows), [("c", 0)], 5)


def test_members_on_the_same_and_on_disjoint_data_are_put_side_by_side(tmp_path):
    kinds = ("harmful", "plain", "borderline")
    rows = [
        {"seed": seed, "prompt": f"p{prompt:02}", "kind": kind, "refused": bool(value)}
        for kind in kinds
        for (seed, prompt), value in np.ndenumerate(VOTES)
    ]
    results = made(tmp_path, rows, seeds=range(5), headline=(0,))
    with pytest.raises(FileNotFoundError, match="ablations"):
        width.data_groups(results)
    teams = [~VOTES[:3], VOTES[2:]]
    part = [
        {"arm": f"disjoint{fold}", "seed": seed, "prompt": f"p{prompt:02}", "kind": kind, "depth": 0, "refused": value}
        for kind in kinds
        for seed, votes in enumerate(teams)
        for (fold, prompt), value in np.ndenumerate(votes)
    ]
    (tmp_path / "ablations").mkdir()
    pd.DataFrame(part).to_csv(tmp_path / "ablations" / "outcomes.csv.gz", index=False)
    groups = width.data_groups(results)["plain"]
    assert len(groups["same"]) == 2 and all((same == VOTES).all() for same in groups["same"])
    assert (groups["disjoint"] == np.array(teams)).all()
    table = width.data_table(results)
    assert table.loc[("same", "majority"), "safe outputs"].mean == pytest.approx(
        width.refusing(VOTES, 3, "majority").mean()
    )
    any_refusal = np.mean([votes.any(axis=0).mean() for votes in teams])
    assert table.loc[("disjoint", "any-refusal"), "borderline refused"].mean == pytest.approx(any_refusal)
    alike = np.mean([width.correlation(votes).mean for votes in teams])
    assert table.loc[("disjoint", "one member"), "correlation"].mean == pytest.approx(alike)


def test_teams_stand_beside_the_votes_at_their_own_depth(tmp_path):
    depths = (5, 12)
    rows = [
        {
            "seed": seed,
            "prompt": f"p{prompt:02}",
            "kind": "harmful",
            "depth": depth,
            "refused": bool(value) == (depth == 5),
        }
        for depth in depths
        for (seed, prompt), value in np.ndenumerate(VOTES)
    ]
    rows += [{**row, "kind": kind, "depth": 0} for row in rows if row["depth"] == 5 for kind in ("plain", "borderline")]
    results = made(tmp_path, rows, seeds=range(5), headline=depths)
    part = [
        {**row, "arm": f"disjoint{row['seed']}", "seed": seed, "refused": row["refused"] and not seed}
        for row in rows
        if row["seed"] < 3
        for seed in (0, 1)
    ]
    (tmp_path / "ablations").mkdir()
    pd.DataFrame(part).to_csv(tmp_path / "ablations" / "outcomes.csv.gz", index=False)
    groups = width.data_groups(results)["harmful"]
    nobody = np.zeros_like(VOTES[:3])
    assert (groups["same"] == np.array([VOTES, VOTES, ~VOTES, ~VOTES])).all()
    assert (groups["disjoint"] == np.array([VOTES[:3], nobody, ~VOTES[:3], nobody])).all()


def test_a_net_gain_is_what_safety_gains_minus_what_over_refusal_gains():
    benign = ~VOTES[:, :25]
    found = width.net_gain(VOTES, benign, 5, "any-refusal")
    safer = VOTES.any(axis=0) - VOTES.mean(axis=0)
    stricter = benign.any(axis=0) - benign.mean(axis=0)
    assert found.mean == pytest.approx(safer.mean() - stricter.mean())
    assert found.standard_error == pytest.approx(np.sqrt(safer.var(ddof=1) / 40 + stricter.var(ddof=1) / 25))
    assert found.low < found.mean < found.high and found.high - found.low > 3.9 * found.standard_error
    assert width.net_gain(VOTES, VOTES, 3, "quorum-3").mean == pytest.approx(0)


# --- what members share -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "risk", "correlation"),
    [
        ([[1, 0, 1, 0], [1, 0, 1, 0]], 0.5, 1),
        ([[1, 0, 1, 0], [0, 1, 0, 1]], 0.5, -1),
        ([[1, 1, 0, 0], [1, 0, 1, 0]], 0.5, 0),
        ([[1, 1, 1, 0], [1, 1, 1, 1]], 1 / 8, -1 / 7),
        ([[1, 1], [1, 1]], 0, float("nan")),
        ([[1, 0]], 0.5, float("nan")),
    ],
)
def test_risk_and_correlation_have_known_values(refused, risk, correlation):
    found = width.exchangeable(np.array(refused))
    assert found == pytest.approx((risk, correlation), nan_ok=True)


def test_correlation_between_teams_leaves_out_members_that_never_vary():
    first, second = np.array([[1, 0, 1, 0], [1, 1, 1, 1]], bool), np.array([[1, 0, 1, 0], [0, 1, 0, 1]], bool)
    assert width.between(first[:1], second[:1]) == pytest.approx(1)
    assert width.between(first, second) == pytest.approx(0)
    assert np.isnan(width.between(first[1:], second))


def test_unequal_risks_are_no_negative_correlation():
    """Independent members at one half and at nine tenths: alike sees that, a model with one risk takes it for the opposite."""
    generator = np.random.default_rng(0)
    refused = np.array([generator.random(20_000) < share for share in (0.5, 0.5, 0.9)])
    assert width.alike(refused) == pytest.approx(0, abs=0.02)
    assert width.exchangeable(refused)[1] < -0.05
    assert width.alike(np.array([refused[0]] * 3)) == pytest.approx(1)
    assert np.isnan(width.alike(refused[:1])) and np.isnan(width.alike(np.ones((3, 4), bool)))


@pytest.mark.parametrize("conditions", [1, 2])
def test_a_correlations_interval_is_the_jackknife_over_prompts(conditions):
    found = width.correlation(np.array([VOTES] * conditions))
    without = np.array([width.alike(np.delete(VOTES, prompt, axis=1)) for prompt in range(40)])
    assert found.standard_error == pytest.approx(np.sqrt(39 / 40 * ((without - without.mean()) ** 2).sum()))
    assert found.low < width.alike(VOTES) < found.high


def test_correlations_of_two_teams_are_compared_on_the_same_prompts():
    shuffled = VOTES[:3, ::-1]
    found = width.correlation(VOTES, shuffled)
    assert found.mean == pytest.approx(width.correlation(VOTES).mean - width.correlation(shuffled).mean)
    assert width.correlation(VOTES, VOTES).standard_error == 0


def test_a_correlation_where_nothing_varies_is_refused():
    with pytest.raises(ValueError, match="nothing varies"):
        width.correlation(np.ones((3, 5), bool))


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["beta-binomial", "copula"])
@pytest.mark.parametrize("rule", width.QUORUM_RULES)
def test_models_fitted_to_pairs_meet_pairs(model, rule):
    measured = 1 - width.refusing(VOTES, 2, rule).mean()
    assert width.predicted_risk(VOTES, 2, rule, model) == pytest.approx(measured, abs=1e-6)


def test_independent_members_are_predicted_by_their_risk_alone():
    risk = 1 - VOTES.mean()
    assert width.predicted_risk(VOTES, 5, "any-refusal", "independent") == pytest.approx(risk**5)
    assert width.predicted_risk(VOTES, 3, "majority", "independent") == pytest.approx(risk**2 * (3 - 2 * risk))
    assert width.predicted_risk(VOTES, 5, "all-refuse", "independent") == pytest.approx(1 - (1 - risk) ** 5)


@pytest.mark.parametrize("model", width.MODELS)
@pytest.mark.parametrize("refuses", [True, False])
def test_members_that_never_vary_are_predicted_to_stay_so(model, refuses):
    refused = np.full((3, 10), refuses)
    assert width.predicted_risk(refused, 3, "majority", model) == pytest.approx(float(not refuses))


def test_a_negative_correlation_counts_as_none():
    refused = np.array([[1, 0, 1, 0], [0, 1, 0, 1]], bool)
    for model in width.MODELS:
        assert width.predicted_risk(refused, 2, "any-refusal", model) == pytest.approx(0.25)


@pytest.mark.parametrize(("risk", "correlation"), [(0.1, 0.3), (0.5, 0.05), (0.97, 0.6), (0.5, 0.0), (0.2, 1.0)])
def test_the_latent_correlation_gives_back_the_indicators(risk, correlation):
    latent = width.latent_correlation(risk, correlation)
    assert ensemble.copula_correlation(risk, latent) == pytest.approx(correlation, abs=1e-9)


def test_beta_binomial_members_are_predicted_by_their_own_model_and_not_by_independence():
    generator = np.random.default_rng(1)
    refused = generator.random((5, 20_000)) < generator.beta(1.2, 0.8, 20_000)
    measured = 1 - width.refusing(refused, 5, "any-refusal").mean()
    assert width.predicted_risk(refused, 5, "any-refusal", "beta-binomial") == pytest.approx(measured, abs=0.01)
    assert width.predicted_risk(refused, 5, "any-refusal", "independent") < measured - 0.08


def test_the_prediction_table_holds_every_width(tmp_path):
    table = width.prediction_table(stored(tmp_path, VOTES[:3], depths=(0, 5)), ["cyclic"], ("majority",))
    assert table[["depth", "width"]].values.tolist() == [[0, 2], [0, 3], [5, 2], [5, 3]]
    last = table.iloc[-1]
    assert last["measured"] == pytest.approx((VOTES[:3].sum(axis=0) < 2).mean())
    assert last["single"] == pytest.approx(1 - VOTES[:3].mean())
    assert last["low"] < last["measured"] < last["high"]
    assert last["copula"] == width.predicted_risk(VOTES[:3], 3, "majority", "copula")


@pytest.mark.parametrize("model", width.MODELS)
def test_the_errors_interval_is_the_jackknife_over_prompts(model):
    found = width.prediction_error(np.array([VOTES, VOTES]), 5, "any-refusal", model)

    def error(table):
        measured = 1 - width.refusing(table, 5, "any-refusal").mean()
        return measured - width.predicted_risk(table, 5, "any-refusal", model)

    without = np.array([error(np.delete(VOTES, prompt, axis=1)) for prompt in range(40)])
    assert found.standard_error == pytest.approx(np.sqrt(39 / 40 * ((without - without.mean()) ** 2).sum()))
    assert found.mean == pytest.approx(error(VOTES), abs=0.01)
    assert found.low < found.mean < found.high and found.seeds == 1


# --- depth and width --------------------------------------------------------------------------------------------------


def trained(folder, untuned=0.0, steps=40, refused=VOTES):
    """The untuned model and five cyclic members at two depths; at the second, members swap their votes."""
    rows = [
        {"arm": arm, "seed": seed, "prompt": f"p{prompt:02}", "depth": depth, "refused": bool(value)}
        for depth, table in ((0, refused), (5, ~refused))
        for arm, votes_ in (("base", np.arange(40)[None] < untuned * 40), ("cyclic", table))
        for (seed, prompt), value in np.ndenumerate(votes_)
    ]
    return made(folder, rows, seeds=range(5), depths=(0, 5), recipe={"steps": steps})


def test_the_map_is_the_share_of_safe_outputs_by_depth_and_width(tmp_path):
    found = width.safety_map(trained(tmp_path), "cyclic", "any-refusal")
    assert found.shape == (2, 5)
    assert found[0] == pytest.approx([width.refusing(VOTES, members, "any-refusal").mean() for members in range(1, 6)])
    assert found[1, 4] == pytest.approx((~VOTES).any(axis=0).mean())


@pytest.mark.parametrize("model", width.MODELS)
@pytest.mark.parametrize("rule", width.QUORUM_RULES)
def test_the_frontier_lies_within_the_updates_where_the_model_predicts_the_target(tmp_path, rule, model):
    updates = width.updates_map(trained(tmp_path), "cyclic", rule, 0.25, model)
    predicted = [[width.predicted_risk(t, w, rule, model) for w in range(1, 6)] for t in (VOTES, ~VOTES)]
    assert ((updates <= 40) == (np.array(predicted) <= 0.25)).all()


def test_the_frontier_runs_through_the_untuned_and_the_trained_risk(tmp_path):
    refused = (
        np.arange(40)[None].repeat(5, axis=0) < 36
    )  # one in ten fails after 40 updates, all but half a prompt before
    updates = width.updates_map(trained(tmp_path, refused=refused), "cyclic", "any-refusal", 0.1**2)
    start = 1 - 0.5 / 40
    assert updates[0, 0] == np.ceil(40 * np.log(start / 0.01) / np.log(start / 0.1))
    assert updates[0, 1] == 40, "two independent members at one in ten"


def test_the_frontier_is_out_of_reach_where_training_did_not_help(tmp_path):
    updates = width.updates_map(trained(tmp_path, untuned=0.9), "cyclic", "majority", 0.1)
    assert np.isinf(updates).all()


def test_costs_are_medians_over_seeds_of_seconds_a_member_and_a_response(tmp_path):
    results = stored(tmp_path, VOTES[:3])
    times = {"train-cyclic-": (100, 110, 300), "generate-cyclic-": (40, 80, 120), "judge-cyclic-": (9, 9, 9)}
    lines = [f"{stage}{seed},{value}" for stage, values in times.items() for seed, value in enumerate(values)]
    (tmp_path / "timings.csv").write_text("unit,seconds\n" + "\n".join(lines))
    assert width.costs(results).loc["cyclic"].to_dict() == {"training": 110, "response": 2}


# --- claims -----------------------------------------------------------------------------------------------------------


def study(folder, **arms):
    """Stored tables of an untuned model that never refuses, and arms with these (members, prompts) votes at one depth."""
    tables = {"base": np.zeros((1, arms["cyclic"].shape[1]), bool)} | arms
    rows = [
        {"arm": arm, "seed": seed, "prompt": f"p{prompt:03}", "depth": 5, "refused": bool(value)}
        for arm, table in tables.items()
        for (seed, prompt), value in np.ndenumerate(table)
    ]
    return made(folder, rows, seeds=range(len(arms["cyclic"])), depths=(5,), headline=(5,))


NONE, ALL = np.zeros((5, 300), bool), np.ones((5, 300), bool)
APART = np.random.default_rng(2).random((5, 300)) < 0.8  # independent members
ALIKE = np.repeat(APART[:1], 5, axis=0)  # members that copy one another
ONCE = APART[:, :30] & (np.arange(30) > 0)  # independent members, but for one prompt that defeats them all
COVERS = (
    np.arange(20) % 5 // 2 == np.array([0, 1, 2, 0, 1])[:, None]
)  # weak members, of whom one refuses any of 20 prompts


@pytest.mark.parametrize(
    ("claim", "arms", "verdict"),
    [
        (findings.offset, {"shallow": NONE, "cyclic": APART}, Verdict.NOT_REPRODUCED),
        (findings.offset, {"shallow": APART, "cyclic": APART}, Verdict.REPRODUCED),
        (findings.majority, {"shallow": NONE, "cyclic": APART}, Verdict.REPRODUCED),
        (findings.majority, {"shallow": NONE, "cyclic": ALIKE}, Verdict.UNDECIDED),
        (findings.majority, {"shallow": APART, "cyclic": ALIKE}, Verdict.UNDECIDED),
        (findings.majority, {"shallow": NONE, "cyclic": NONE}, Verdict.UNDECIDED),
        (findings.majority, {"shallow": NONE[:2], "cyclic": APART[:2]}, Verdict.UNDECIDED),
        (findings.independence, {"shallow": ALIKE[:2], "cyclic": APART[:2]}, Verdict.UNDECIDED),
        (findings.independence, {"shallow": ALIKE, "cyclic": APART}, Verdict.NOT_REPRODUCED),
        (findings.independence, {"shallow": APART, "cyclic": APART}, Verdict.REPRODUCED),
        (findings.independence, {"shallow": ALIKE[:, :20], "cyclic": APART[:, :20]}, Verdict.UNDECIDED),
        (findings.independence, {"shallow": APART[:, :30], "cyclic": ONCE}, Verdict.UNDECIDED),
        (findings.offset, {"shallow": NONE[:1], "cyclic": APART[:1]}, Verdict.UNDECIDED),
        (findings.any_refusal, {"shallow": COVERS, "cyclic": ALL[:, :20]}, Verdict.UNDECIDED),
        (findings.any_refusal, {"shallow": np.tile(COVERS, 5), "cyclic": ALL[:, :100]}, Verdict.REPRODUCED),
        (findings.any_refusal, {"shallow": ~APART, "cyclic": ALL}, Verdict.NOT_REPRODUCED),
        (findings.any_refusal, {"shallow": APART, "cyclic": ALL}, Verdict.UNDECIDED),
    ],
)
def test_a_claims_verdict_follows_from_the_votes(tmp_path, monkeypatch, claim, arms, verdict):
    results = study(tmp_path, **arms)
    benign = results.outcomes.assign(kind="plain", depth=0)
    pd.concat([results.outcomes, benign]).to_csv(tmp_path / "outcomes.csv.gz", index=False)
    monkeypatch.setattr(findings, "load", lambda: type(results)(tmp_path))
    assert claim().verdict == verdict


@pytest.mark.parametrize(
    ("same", "disjoint", "verdict"),
    [
        (ALIKE, APART[2:], Verdict.REPRODUCED),
        (APART, ALIKE[2:], Verdict.NOT_REPRODUCED),
        (APART, APART[2:], Verdict.UNDECIDED),
        (ALIKE, None, Verdict.UNDECIDED),
    ],
)
def test_disjoint_data_help_if_failures_correlate_less(tmp_path, monkeypatch, same, disjoint, verdict):

    def data_groups(_):
        if disjoint is None:
            raise FileNotFoundError("no ablations")
        return {"harmful": {"same": same[None], "disjoint": disjoint[None]}}

    monkeypatch.setattr(width, "data_groups", data_groups)
    monkeypatch.setattr(findings, "load", lambda: SimpleNamespace(headline=(5,)))
    found = findings.disjoint()
    assert found.verdict == verdict
    assert disjoint is None or "teams of three on disjoint data: 1." in found.evidence
