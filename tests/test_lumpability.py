"""The measured chain's tables, what they say of lumping, and the claims drawn from them, on tables made by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_results import given

from safetylib import stats
from safetylib.claims import Verdict, ledger
from safetylib.study import chain_findings, laws, lumpability
from safetylib.study.chain_tables import Forced, MeasuredRuns, side_by_side

DEPTHS, WINDOW = (0, 1, 2, 4), 3


def forced(immediate, generated=None, depths=DEPTHS, window=WINDOW):
    """One arm from (seeds, depths, prompts) probabilities; they hold at every position up to the next measured one."""
    places = np.searchsorted(depths, np.arange(max(depths) + window), side="right") - 1
    harmful = 1 - immediate[:, places]
    within = np.stack([1 - harmful[:, k : k + window].prod(axis=1) for k in depths], axis=1)
    generated = within if generated is None else generated
    prompts = tuple(f"p{i}" for i in range(immediate.shape[2]))
    return Forced(depths, prompts, {"cyclic": immediate}, {"cyclic": within}, {"cyclic": generated}, 0.0, window)


SAME = np.tile(np.array([0.1, 0.2, 0.3, 0.4])[None, :, None], (2, 1, 20))
HALVES = np.tile(np.repeat([0.0, 1.0], 10), (2, 4, 1))


# --- lumping ----------------------------------------------------------------------------------------------------------


def test_a_state_has_no_variance_between_prompts_and_multiplies():
    table = forced(SAME)
    assert lumpability.prompt_share(table, "cyclic", 2).mean == pytest.approx(0, abs=1e-12)
    assert lumpability.product_gap(table, (0, 2)).mean == pytest.approx(0, abs=1e-12)


def test_the_seeds_are_those_of_trained_arms():
    table = forced(SAME)
    one = SAME[:1]
    with_base = replace(
        table, **{part: {"base": one} | getattr(table, part) for part in ("immediate", "within", "generated")}
    )
    assert table.seeds == 2 and with_base.seeds == 2


def test_prompts_that_decide_alone_are_no_state():
    """Half always refuse, half never: one half refuses within two places, the lumped chain says three quarters."""
    table = forced(HALVES)
    assert lumpability.prompt_share(table, "cyclic", 2).mean == pytest.approx(1)
    gap = lumpability.product_gap(table, (2,))  # places 2 and 4 lie in the window
    assert gap.mean == pytest.approx(0.25) and gap.low > 0.15
    assert lumpability.product_gap(table, (0,)).mean == pytest.approx(1 - 1 / 8 - 1 / 2)


def test_deviations_that_other_arms_share_repeat_and_others_do_not():
    generator = np.random.default_rng(0)
    tables = [generator.uniform(0, 1, (1, 4, 200)) for _ in range(2)]
    base = np.zeros((1, 4, 200))
    table = replace(forced(tables[0]), immediate=dict(zip(("cyclic", "uniform", "base"), [*tables, base], strict=True)))
    found = lumpability.repeats(table, "cyclic")
    assert found.low < 0 < found.high
    shared = replace(table, immediate={"cyclic": tables[0], "uniform": 0.3 * tables[0] + 0.1, "base": base})
    assert lumpability.repeats(shared, "cyclic").mean == pytest.approx(1)
    with pytest.raises(ValueError, match="only trained arm"):
        lumpability.repeats(forced(SAME), "cyclic")


def test_intervals_count_seeds_and_prompts_and_an_untuned_model_keeps_its_one_seed():
    generator = np.random.default_rng(1)
    prompts, seeds = generator.normal(0.5, 0.05, 40), np.array([-0.2, 0.0, 0.2])
    table = forced(np.broadcast_to(prompts, (3, 4, 40)) + seeds[:, None, None])
    with_base = replace(table, immediate=table.immediate | {"base": HALVES[:1, :, :1] + np.zeros((1, 4, 40))})

    def mean(part):
        assert len(part.immediate["base"]) == 1
        return part.immediate["cyclic"][:, 0].mean()

    found = lumpability.estimate(with_base, mean)
    assert found.mean == pytest.approx(prompts.mean()) and (found.prompts, found.seeds) == (40, 3)
    assert found.standard_error**2 == pytest.approx(prompts.var(ddof=1) / 40 + seeds.var(ddof=1) / 3)


def test_lumped_curves_multiply_interpolated_means():
    assert lumpability.lumped_within(forced(SAME), "cyclic")[0] == pytest.approx(
        [
            1 - 0.9 * 0.8 * 0.7,
            1 - 0.8 * 0.7 * 0.65,
            1 - 0.7 * 0.65 * 0.6,
            1 - 0.6**3,
        ]
    )


def test_curves_that_are_generated_as_predicted_agree_and_shifted_ones_do_not():
    table = forced(np.random.default_rng(2).uniform(0, 0.5, (2, 4, 30)))
    found = lumpability.agreement(table)
    assert (found.difference.mean, found.bias.mean, found.cells) == (0, 0, 4)
    assert found.correlation.mean == pytest.approx(1)
    shifted = forced(table.immediate["cyclic"], table.within["cyclic"] - 0.2)
    found = lumpability.agreement(shifted)
    assert found.bias.mean == pytest.approx(0.2) and found.difference.low == pytest.approx(0.2)


def test_the_likelier_side_counts_prompts():
    curves = lumpability.depth_curves(forced(HALVES), "cyclic")
    assert curves["its likelier side"] == pytest.approx(0.5) == curves["each prompt's chain"]


# --- tables -----------------------------------------------------------------------------------------------------------


def rows_of(seeds, prompts, depths, **columns):
    cells = itertools.product(seeds, prompts, depths)
    return pd.DataFrame([{"arm": "cyclic", "seed": s, "prompt": p, "depth": k, **columns} for s, p, k in cells])


def test_predictions_and_outcomes_are_paired_and_short_answers_left_out():
    table = rows_of((0, 1), ("b", "a"), (0, 5), immediate=0.1, within=0.4, missed=0.01)
    table.loc[table["prompt"] == "a", "immediate"] = 0.2
    short = rows_of((0, 1), ("c",), (0,), immediate=0.9, within=0.9, missed=0.02)
    outcomes = rows_of((0, 1, 2), ("a", "b", "c", "d"), (0, 5, 9), refused=False)
    outcomes.loc[(outcomes["prompt"] == "a") & (outcomes["depth"] == 5), "refused"] = True
    found = side_by_side(pd.concat([table, short]), outcomes, ["cyclic"], 16)
    assert (found.prompts, found.depths, found.missed) == (("a", "b"), (0, 5), 0.02)
    assert found.immediate["cyclic"][0].tolist() == [[0.2, 0.1], [0.2, 0.1]]
    assert found.generated["cyclic"][1].tolist() == [[0, 0], [1, 0]]
    with pytest.raises(ValueError, match="cyclic: some seed, depth or prompt has no refused"):
        side_by_side(table, outcomes[outcomes["depth"] == 0], ["cyclic"], 16)


def made_runs(part="chain"):
    """Two optimisers, six runs each with two seeds, whose start, stop and turn follow the softmax law, or in the longer part
    the cross-entropy law."""
    law = {"chain": "softmax", "longer": "cross-entropy"}[part]
    outcomes, training = [], []
    for optimiser, alphas in (("adamw", (1e-3, 2e-3, 4e-3)), ("sgd", (0.1, 0.2, 0.4))):
        for place, (alpha, gamma) in enumerate(itertools.product(alphas, (0.85, 0.96))):
            run, sizes = f"{optimiser}{place}", alpha * gamma ** np.arange(24)
            training += [
                {"run": run, "seed": seed, "step": t, "step_size": float(f"{size:.5g}")}
                for seed in (0, 1)
                for t, size in enumerate(sizes)
            ]
            for seed, step in itertools.product((0, 1), (0, 1, 2, 4, 8, 16, 24)):
                clock = sizes[:step].sum() / alphas[0] * 1e-3
                for prompt in range(10):
                    value = float(laws.curve(law, clock, 0.03 + 0.002 * prompt, 160 + seed + place % 3))
                    named = {"run": run if step else "untrained", "seed": seed, "step": step, "prompt": f"p{prompt}"}
                    if step or (run, seed) == ("adamw0", 0):
                        outcomes += [{**named, "quantity": "start", "depth": k, "value": value} for k in (0, 5)]
                        outcomes += [{**named, "quantity": "stop", "depth": 0, "value": value}]
                        outcomes += [{**named, "quantity": "turn", "depth": 0, "value": float(value < 0.5)}]
    return MeasuredRuns(pd.DataFrame(outcomes), pd.DataFrame(training))


def test_runs_tell_their_step_size_and_decay_by_what_they_used():
    runs = made_runs().runs
    assert runs.loc["sgd3", "optimiser"] == "sgd" and runs.loc["sgd3", "alpha"] == pytest.approx(0.2)
    assert sorted(set(runs["gamma"])) == [0.85, 0.96] and runs.loc["sgd3", "gamma"] == 0.96
    assert made_runs().optimisers == ["adamw", "sgd"] and made_runs().depths("start") == [0, 5]


def test_a_run_whose_loss_ends_above_its_start_blew_up(monkeypatch):
    losses = {"adamw0": np.linspace(4, 1, 16), "sgd0": np.linspace(4, 90, 16), "sgd1": np.r_[np.full(15, 3.0), 3.5]}
    rows = [
        {"run": run, "seed": seed, "step": t, "refusal_loss": loss if seed else min(loss, 3)}
        for run, one in losses.items()
        for seed in (0, 1)
        for t, loss in enumerate(one)
    ]
    tables = {"chain": pd.DataFrame(rows), "longer": pd.DataFrame(rows).query("run != 'sgd0'")}
    monkeypatch.setattr(chain_findings, "runs", lambda part: MeasuredRuns(pd.DataFrame(), tables[part]))
    assert chain_findings.blown_up() == [("sgd0", 1), ("sgd1", 1)]
    assert chain_findings.blown_up("longer") == [("sgd1", 1)]


def test_the_end_of_a_run_is_its_last_step_with_the_loss_of_the_last_four():
    made = made_runs()
    training = made.training.assign(refusal_loss=lambda rows: 30.0 - rows["step"] + rows["seed"])
    table = MeasuredRuns(made.outcomes, training).after_training()
    assert (
        list(table.index) == [*made.runs.index, "untrained"]
        and table.loc["untrained", ["alpha", "loss, last four"]].isna().all()
    )
    assert table.loc["sgd3", "S at the end"] == pytest.approx(0.2 * sum(0.96**t for t in range(24)), rel=1e-4)
    assert table.loc["sgd3", "loss, last four"] == pytest.approx(30 - 21.5 + 0.5), "steps 20 to 23, mean of two seeds"
    last = made.outcomes.query("run == 'sgd3' and step == 24").groupby("quantity")["value"].mean()
    assert table.loc["sgd3", ["start", "stop", "stay"]].tolist() == pytest.approx(
        [last["start"], last["stop"], 1 - last["turn"]]
    )
    assert table.loc["untrained", "start"] == pytest.approx(0.03 + 0.002 * 4.5) and table.loc["untrained", "stay"] == 0


def test_trajectories_begin_with_the_untrained_model_and_staying_is_not_turning():
    table = made_runs()
    start, stay = table.trajectories("sgd", "start", 5), table.trajectories("sgd", "stay")
    assert start.runs == tuple(f"sgd{i}" for i in range(6)) and start.values.shape == (2, 6, 7, 10)
    assert start.values[:, :, 0] == pytest.approx(np.tile(0.03 + 0.002 * np.arange(10), (2, 6, 1)))
    own = table.outcomes.query("run == 'sgd4' and seed == 1 and step == 8 and quantity == 'start' and depth == 5")
    assert start.values[1, 4, 4] == pytest.approx(own.sort_values("prompt")["value"])
    assert (start.values[1] > start.values[0])[:, 1:].all(), "the second seed learns faster"
    assert (stay.values == (start.values >= 0.5)).all()
    one = start.clock()[5]
    assert one[1:3] == pytest.approx([0.4, 0.4 * 1.96], rel=1e-4)
    for hole in ("step == 8", "seed == 1", "step == 8 and seed == 1", "step == 8 and prompt == 'p3'"):
        lacking = table.outcomes.query(f"not (run == 'sgd2' and {hole})")
        with pytest.raises(ValueError, match="start, depth 5, sgd: some run lacks a seed, a step or a prompt"):
            MeasuredRuns(lacking, table.training).trajectories("sgd", "start", 5)
    with pytest.raises(ValueError, match="unknown quantity 'go'"):
        table.trajectories("sgd", "go")


# --- verdicts ---------------------------------------------------------------------------------------------------------


def scores_of(**means):
    return {name: given(np.full((1, 6, 8), means.get(name.replace("-", "_"), 1.0))) for name in laws.FORECASTS}


@pytest.mark.parametrize(
    "means, verdict",
    [
        ({"additive": 0.5, "softmax": 0.6, "cross_entropy": 0.6, "monotone": 0.5}, Verdict.REPRODUCED),
        ({"additive": 0.5, "softmax": 0.4, "cross_entropy": 0.6, "monotone": 0.4}, Verdict.NOT_REPRODUCED),
        ({"additive": 0.5, "softmax": 0.6, "cross_entropy": 0.6, "monotone": 0.4}, Verdict.NOT_REPRODUCED),
        ({"additive": 0.5, "softmax": 0.5, "cross_entropy": 0.6, "monotone": 0.5}, Verdict.UNDECIDED),
    ],
)
def test_the_verdict_on_the_additive_law(means, verdict):
    assert chain_findings.law_verdict(scores_of(**means)) is verdict


@pytest.mark.parametrize(
    "interval, verdict",
    [
        ((0.04, 0.03, 0.05), Verdict.REPRODUCED),
        ((0.04, 0.03, 0.06), Verdict.UNDECIDED),
        ((0.07, 0.06, 0.08), Verdict.NOT_REPRODUCED),
    ],
)
def test_a_bound_is_kept_by_the_whole_interval(interval, verdict):
    assert chain_findings.within_bound(stats.Estimate(*interval, 0.01, 4, 100, 5), 0.05) is verdict


def test_the_claims_find_the_law_and_the_one_rate_that_made_the_runs(monkeypatch):
    monkeypatch.setattr(chain_findings, "runs", made_runs)
    monkeypatch.setattr(chain_findings, "_FORECASTS", {})
    chain_findings.law_scores.cache_clear()
    try:
        found = chain_findings.comparison("sgd")
        assert (found.law, found.outcome) == ("softmax", "followed")
        assert chain_findings.law_verdict(chain_findings.law_scores("sgd")) is Verdict.NOT_REPRODUCED
        longer = chain_findings.comparison("sgd", part="longer")
        assert (longer.law, longer.outcome) == ("cross-entropy", "followed"), (
            "a part is not judged by another's forecasts"
        )
        assert chain_findings.mean_over_depths("sgd", part="longer").values[0, 0, -1, 0] == pytest.approx(
            made_runs("longer").trajectories("sgd", "start", 0).values[0, 0, -1, 0]
        )
        broken = {"chain": [("sgd0", 0)], "longer": [("sgd1", 0), ("sgd2", 1)]}
        monkeypatch.setattr(chain_findings, "blown_up", lambda part: broken[part])
        for part, left in (("chain", 5), ("longer", 4)):
            assert chain_findings.law_scores("sgd", steady=True, part=part)["additive"].table.shape == (2, left, 10)
        (claim,) = [one for one in ledger(10) if one.id == "10-law-start-sgd"]
        found = claim.check()
        assert found.verdict is Verdict.NOT_REPRODUCED and "constant" in found.evidence
        found = chain_findings.scaling("sgd")
        assert found.outcome == "one rate" and found.exponent.mean == pytest.approx(0, abs=0.1) and found.runs >= 5
    finally:
        chain_findings.law_scores.cache_clear()
