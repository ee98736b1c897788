"""The stored results belong to the code and the plan that stand in this repository, and hold no text."""

import json
from dataclasses import asdict

import pandas as pd
import pytest

from safetylib.study import assets, compare, operating_point, parts, prompts, results
from safetylib.study.presets import preset
from safetylib.study.store import stage_fingerprints

STORED = results.load("cpu")
PLAN = preset("cpu")


def test_results_carry_the_stamp_of_the_present_code():
    changed = [stage for stage, stamp in stage_fingerprints().items() if STORED.manifest["stages"][stage] != stamp]
    assert not changed, (
        f"code of the stages {', '.join(changed)} has changed since results/cpu was measured. If no result can differ, run "
        "`make reproduce ARGS=--renew`; otherwise measure again with `make reproduce ARGS=--accept`."
    )


@pytest.mark.parametrize("name", [name for name in parts.MODULES if (STORED.folder / name).is_dir()])
def test_parts_carry_the_stamp_of_the_present_code_and_plan(name):
    manifest = json.loads((STORED.folder / name / "manifest.json").read_text())
    present = parts.part(name)(PLAN, STORED.folder.parent.parent / "runs" / PLAN.name)
    assert manifest["stamp"] == present.stamp, (
        f"code of the part {name} has changed since it was measured: make reproduce PART={name} ARGS=--accept"
    )
    assert manifest["stages"] == stage_fingerprints() and manifest["units"] == list(present.own())


def test_results_were_measured_under_the_present_plan():
    assert STORED.manifest["plan"] == json.loads(json.dumps(asdict(PLAN)))
    assert STORED.manifest["assets"] == assets.PINS


def test_every_member_answered_every_prompt_at_every_depth():
    table = STORED.outcomes.query("kind == 'harmful' and split == 'test'")
    counts = table.groupby(["arm", "seed"]).size()
    prompts_used = table["prompt"].nunique()
    assert prompts_used >= 100
    assert list(counts.index) == sorted(PLAN.members())
    assert (counts == prompts_used * len(PLAN.measurement.depths)).all()
    assert not table.duplicated(["arm", "seed", "prompt", "depth"]).any()


def test_test_prompts_were_never_trained_on():
    split = {prompt.id: prompt.split for prompt in [*prompts.harmful(PLAN.prompts, PLAN.split), *prompts.benign()]}
    assert all(
        split[row.prompt] == row.split for row in STORED.outcomes[["prompt", "split"]].drop_duplicates().itertuples()
    )


def test_over_refusal_was_measured_on_enough_benign_prompts():
    benign = STORED.outcomes.query("kind != 'harmful'").groupby("kind")["prompt"].nunique()
    assert benign["plain"] >= 150 and benign["borderline"] >= 100


def test_tables_hold_identifiers_and_scores_but_no_text():
    for column in STORED.outcomes.select_dtypes(include=["object", "str"]).columns:
        longest = STORED.outcomes[column].dropna().astype(str).str.len().max()
        assert longest <= 20, column


def test_the_operating_point_is_the_one_that_the_rule_picks():
    table = pd.read_csv(STORED.folder / "operating_point.csv")
    assert set(table["arm"]) == set(operating_point.ARMS) and set(table["candidate"]) == set(operating_point.CANDIDATES)
    assert operating_point.chosen(PLAN, table) == PLAN.recipe


def test_the_results_agree_with_themselves_and_not_with_a_shifted_copy(monkeypatch):
    table = compare.differences(STORED, STORED)
    assert (table["difference"] == 0).all() and table["band"].between(0, 1, inclusive="neither").all()
    shifted = results.Results(STORED.folder)
    shifted.__dict__["outcomes"] = STORED.outcomes.assign(refused=True)
    table = compare.differences(shifted, STORED)
    assert (table["difference"].abs() > table["band"]).any()


def test_missing_results_say_how_to_measure_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        results.Results(tmp_path / "colab")


def test_the_arms_spent_equal_budgets():
    """The same seed: the same anchors and refusals. Contexts differ by the positions alone, and a refusal after a prefix is
    longer by its separator, which one in four of the cyclic arm's does without."""
    recipe, spent = PLAN.recipe, STORED.training.groupby(["arm", "seed"])
    anchors, targets, contexts = (
        spent[f"{kind}_tokens"].sum().unstack("arm") for kind in ("anchor", "refusal", "context")
    )
    assert (anchors.nunique(axis=1) == 1).all() and set(anchors) == set(PLAN.arms) - {"base"}
    refusals, mean = recipe.steps * recipe.harmful_per_step, sum(recipe.orbit) / len(recipe.orbit)
    assert (contexts["deep"] - contexts["shallow"] == refusals * recipe.deep_position).all()
    assert (contexts["cyclic"] - contexts["shallow"] == refusals * mean).all()
    separators = targets["deep"] - targets["shallow"]
    assert (separators % refusals == 0).all() and (targets["cyclic"] - targets["shallow"] == 0.75 * separators).all()


@pytest.mark.skipif(not (STORED.folder / "ablations").is_dir(), reason="the ablations are not stored")
def test_ablations_spent_what_the_cyclic_arm_spent():
    """The same seed: equal anchors, and equal context wherever the orbits have one mean. Refusals differ by their separators
    alone, which those at position 0 do without: one in two, eight or four."""
    columns = ["anchor_tokens", "context_tokens"]
    cyclic = STORED.training.query("arm == 'cyclic'").groupby("seed")[columns].sum()
    spent = STORED.part("ablations", "training").groupby(["arm", "seed"])[columns].sum()
    for variant in ("orbit2", "orbit8", "rotate"):
        assert spent.loc[variant].equals(cyclic), variant
    main, variants = (
        table.groupby(["arm", "seed"])["refusal_tokens"].sum()
        for table in (STORED.training, STORED.part("ablations", "training"))
    )
    separators = main["deep"] - main["shallow"]
    for variant, positions in (("orbit2", 2), ("orbit8", 8), ("rotate", 4)):
        assert (variants[variant] - main["shallow"] == (1 - 1 / positions) * separators).all(), variant


def test_verdicts_are_those_of_the_selected_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "_selected", [])
    plan = {"model": "another-model", "prompts": "mine.csv"}
    for name in ("cpu", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"plan": plan}))
    assert results.load().folder.name == "cpu"
    with pytest.raises(FileNotFoundError, match="make reproduce PRESET=colab"):
        results.select("colab")
    assert (
        results.select("mine").folder.name == results.load().folder.name == results.select("mine").folder.name == "mine"
    )
    assert "another-model and mine.csv" in capsys.readouterr().out
    assert results.load("cpu").folder.name == "cpu"
    with pytest.raises(RuntimeError, match="restart the kernel"):
        results.select("cpu")
    with pytest.raises(FileNotFoundError, match="operating_point mine"):
        _ = results.load().operating_point
