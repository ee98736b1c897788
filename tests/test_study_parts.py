"""Parts beyond the main plan: the group action on phrases, equal budgets, transition probabilities, tables and their command."""

import copy
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from safetylib.study import (
    ablations,
    along,
    assets,
    augment,
    forced,
    generate,
    part,
    parts,
    prompt_sets,
    prompts,
    run,
    train,
    transitions,
)
from safetylib.study.presets import PRESETS

TINY = PRESETS["tiny"]
RECIPE = TINY.recipe


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The ablations of the tiny preset, nothing measured yet but the untuned answers."""
    study = ablations.Ablations(TINY, tmp_path_factory.mktemp("parts"), silent=True, per_set=4)
    with study.store.held():
        study.run(["answers"])
    return study


@pytest.fixture
def made_xstest(tmp_path, monkeypatch):
    """Three prompts in the place of XSTest's."""
    path = tmp_path / "xstest_prompts.csv"
    rows = ["id,type,label,prompt", "1,homonyms,safe,Describe box 1.", "2,figurative_language,safe,Describe box 2."]
    path.write_text("\n".join([*rows, "26,contrast_homonyms,unsafe,Describe box 26."]), "utf-8")
    monkeypatch.setitem(prompt_sets.XSTEST_FILES, path.name, assets.sha256(path))
    monkeypatch.setenv("SAFETYLIB_XSTEST", str(tmp_path))


# --- the rotation of phrases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3, 4, 8])
def test_rotations_of_phrases_are_the_cyclic_group(order):
    phrases = [[place] for place in range(order)]
    powers = [ablations.rotated(phrases, power) for power in range(order)]
    assert powers[0] == phrases and len({str(row) for row in powers}) == order
    for first, second in product(range(order), repeat=2):
        assert ablations.rotated(powers[first], second) == powers[(first + second) % order]
    assert ablations.rotated(phrases, order) == phrases


def test_one_shift_moves_every_phrase_one_place_on():
    assert ablations.rotated([["R"], ["a"], ["b"], ["c"]], 1) == [["c"], ["R"], ["a"], ["b"]]


def test_rotated_batches_have_the_cyclic_arms_refusals_positions_and_token_counts(study):
    cyclic = list(augment.batches("cyclic", RECIPE, study.material, 3))
    rotate = list(ablations.rotate_batches(RECIPE, study.material, 3))
    differs = False
    for step, (expected, found) in enumerate(zip(cyclic, rotate, strict=True)):
        assert augment.token_counts(expected) == augment.token_counts(found)
        for one, other in zip(expected, found, strict=True):
            assert (one.target, one.kind, one.position) == (other.target, other.kind, other.position)
            if one.kind == "refusal":
                assert one.position == RECIPE.orbit[step % len(RECIPE.orbit)]
                prompt = len(one.context) - one.position
                assert one.context[:prompt] == other.context[:prompt]
                differs = differs or one.context != other.context
            else:
                assert one == other
    assert differs, "phrases that wrapped around stand before the refusal"


def test_before_a_rotated_refusal_stand_the_answers_last_phrases(study):
    batch = list(ablations.rotate_batches(RECIPE, study.material, 0))[1]
    answers = {tuple(prompt): answer for prompt, answer in study.material.harmful}
    refusals = [example for example in batch if example.kind == "refusal"]
    assert refusals
    for example in refusals:
        prompt, before = example.context[: -example.position], example.context[-example.position :]
        assert before == answers[tuple(prompt)][RECIPE.orbit[-2] : RECIPE.orbit[-1]]


def test_phrases_are_rotated_along_equally_spaced_orbits_only(study):
    with pytest.raises(ValueError, match="equally spaced"):
        list(ablations.rotate_batches(replace(RECIPE, orbit=(0, 2, 6)), study.material, 0))


# --- orbits of other sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"), [(2, (0, 24)), (4, (0, 8, 16, 24)), (8, (0, 3, 7, 10, 14, 17, 21, 24)), (3, (0, 12, 24))]
)
def test_orbits_span_the_range_and_are_symmetric(size, expected):
    found = ablations.orbit(size, 24)
    assert found == expected and [24 - position for position in reversed(found)] == list(found)


def test_an_orbit_needs_two_positions():
    with pytest.raises(ValueError, match="two positions, not 1"):
        ablations.orbit(1, 24)


def test_equal_budgets_are_asserted():
    recipe = PRESETS["cpu"].recipe
    ablations.equal_budgets(recipe, replace(recipe, orbit=(0, 24)))
    with pytest.raises(ValueError, match="unequal budgets"):
        ablations.equal_budgets(recipe, replace(recipe, orbit=(0, 8)))
    with pytest.raises(ValueError, match="whole number"):
        ablations.equal_budgets(recipe, replace(recipe, orbit=(0, 12, 24)))


@pytest.mark.parametrize("seed", [0, 1])
def test_disjoint_members_share_no_training_prompt(study, seed):
    asked = []
    for variant in ("disjoint0", "disjoint1", "disjoint2"):
        examples = [example for batch in study.batches(variant, seed) for example in batch if example.kind == "refusal"]
        asked.append({tuple(example.context[: len(example.context) - example.position]) for example in examples})
    assert all(asked) and not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])


def test_every_member_on_disjoint_data_has_batches_of_its_own(study):
    members = [(f"disjoint{fold}", seed) for seed in range(3) for fold in range(3)]
    seeds = [ablations._own_seed(*member) for member in members]
    assert seeds == list(range(9)) and ablations._own_seed("orbit2", 4) == 4
    batches = [[example.context for example in next(study.batches(*member))] for member in members[::3]]
    assert batches[0] != batches[1] != batches[2], "teams are not copies of each other"


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, (0, 1)), (3, (0, 1, 2, 3)), (16, (0, 1, 2, 4, 8, 16)), (40, (0, 1, 2, 4, 8, 16, 32, 40))],
)
def test_checkpoints_are_the_start_powers_of_two_and_the_end(steps, expected):
    assert along.checkpoints(steps) == expected


def test_adapters_are_saved_before_the_batch_of_their_step_and_after_the_last(tmp_path):
    class Saved:
        def __init__(self):
            self.seen, self.batches = [], 0

        def save_pretrained(self, folder, **_):
            self.seen.append((folder.name, self.batches))

    model = Saved()
    for _ in along.saving([[], [], []], model, (0, 2, 3), tmp_path):
        model.batches += 1
    assert model.seen == [("step-0", 0), ("step-2", 2), ("step-3", 3)]


# --- transition probabilities -----------------------------------------------------------------------------------------


def test_openings_are_distinct_beginnings():
    assert transitions.openings([[9, 9, 1, 2, 3], [9, 9, 1, 2, 4], [9, 9, 5]], 2, words=2) == [(9, 9, 1, 2), (9, 9, 5)]


def slowly(model, prompt, trunk, openings):
    """The same sum, one whole forward pass an opening."""
    total = 0.0
    for opening in openings:
        whole = torch.tensor([prompt + trunk + list(opening)])
        logits = model(input_ids=whole, attn_implementation="eager").logits[0].float().log_softmax(-1)
        first = len(prompt) + len(trunk) - 1
        total += float(sum(logits[first + place, token] for place, token in enumerate(opening)).exp())
    return total


def test_starting_probabilities_equal_the_sum_over_openings_computed_one_by_one(study):
    from transformers import AutoModelForCausalLM

    model = study.base.float()
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    start, later = [(5, 6), (5, 7), (8,)], [(9, 9, 5), (9, 9, 8), (9, 4, 1)]
    prompts, trunks = [[3, 1, 4], [2, 7, 1, 8]], [[20, 21, 22], [30, 31]]
    found, missed = transitions.starting_probabilities(model, prompts, trunks, start, later, least=0.0)
    assert missed == 0.0
    for prompt, trunk, chances in zip(prompts, trunks, found, strict=True):
        assert len(chances) == len(trunk) + 1
        for position, value in enumerate(chances):
            expected = slowly(plain, prompt, trunk[:position], later if position else start)
            assert value == pytest.approx(expected, rel=1e-4)
    some, _ = transitions.starting_probabilities(model, prompts, trunks, start, later, 0.0, positions=(0, 2))
    for chances, whole in zip(some, found, strict=True):
        assert chances[[0, 2]] == pytest.approx(whole[[0, 2]]) and chances[1] == 0


def test_what_is_left_out_is_bounded_by_what_is_reported_missed(study):
    prompts, trunks = [[3, 1, 4]], [[20, 21, 22, 23]]
    openings = [(token, other) for token in range(40) for other in range(3)]
    whole, _ = transitions.starting_probabilities(study.base, prompts, trunks, openings, openings, least=0.0)
    short, missed = transitions.starting_probabilities(study.base, prompts, trunks, openings, openings, least=0.006)
    assert missed > 0 and (whole[0] - short[0]).max() > 0
    assert ((whole[0] - short[0]) <= missed + 1e-6).all()


def test_within_a_window_is_the_complement_of_surviving_every_step():
    chances = np.array([0.5, 0.1, 0.2, 0.9])
    assert transitions.within(chances, 1, 2) == pytest.approx(1 - 0.9 * 0.8)
    assert transitions.within(chances, 0, 1) == pytest.approx(0.5)


def test_stopping_probabilities_are_the_models(study):
    responses, eos = [[3, 1, 4, 1], [2, 7]], study.tokenizer.eos_token_id
    found = transitions.stopping_probabilities(study.base, responses, eos)
    assert found.shape == (2,) and ((found > 0) & (found < 1)).all()
    assert found[0] != found[1]
    for response, value in zip(responses, found, strict=True):
        alone = transitions.stopping_probabilities(study.base, [response], eos)
        assert alone == pytest.approx([value], rel=1e-3)


def test_refusals_begin_differently_at_the_start_and_after_a_prefix(study):
    start, later = forced.refusal_openings(study)
    separator = study.tokenizer(augment.SEPARATOR, add_special_tokens=False)["input_ids"]
    assert all(list(opening[: len(separator)]) == separator for opening in later)
    assert not any(list(opening[: len(separator)]) == separator for opening in start)


# --- parts as units ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["xstest", "forced", "along", "ablations", "chain", "rated"])
def test_a_part_measures_resumes_and_says_where_its_tables_come_from(study, made_xstest, name):
    found = parts.part(name)(TINY, study.store.root, silent=True, per_set=4)
    with found.store.held():
        found.run()
    tables = found.tables()
    assert len(tables["outcomes"]) and list(tables["timings"]["unit"]) == list(found.own())
    manifest = found.manifest()
    assert manifest["part"] == name and manifest["units"] == list(found.own())
    assert ("xstest_prompts.csv" in manifest["assets"]) == (name == "xstest")
    again = parts.part(name)(TINY, study.store.root, silent=True, per_set=4)
    for stage in {unit.split("-")[0] for unit in again.units}:
        setattr(again, f"_{stage}", lambda *_: pytest.fail("a finished unit is repeated"))
    with again.store.held():
        again.run()
    assert again.tables()["outcomes"].equals(tables["outcomes"])


def test_every_seed_has_every_variant_and_the_first_three_also_disjoint_data(study):
    plan = replace(TINY, seeds=(0, 1, 2, 3, 4))
    members = [
        unit.split("-")[1:] for unit in parts.part("ablations")(plan, study.store.root).own() if "ablate" in unit
    ]
    for one in "012":
        assert sorted(variant for variant, seed in members if seed == one) == sorted(ablations.VARIANTS)
    for one in "34":
        assert sorted(variant for variant, seed in members if seed == one) == ["orbit2", "orbit8", "rotate"]


def test_benign_answers_are_rated_and_all_of_them(study):
    found = parts.part("rated")(TINY, study.store.root, silent=True, per_set=4)
    with found.store.held():
        found.run()
    rows = found.tables()["outcomes"]
    asked = [(prompt.kind, prompt.id) for kind in ("plain", "borderline") for prompt in found.chosen(kind, "test")]
    members = rows.groupby(["arm", "seed"])
    assert list(members.groups) == sorted(TINY.members())
    assert all(list(zip(own["kind"], own["prompt"], strict=True)) == asked for _, own in members)
    assert rows["safety"].dropna().between(0, 1).all() and rows["safety"].notna().any()


@pytest.mark.parametrize(("name", "role"), [("rated", "judge"), ("transfer", "model")])
def test_a_part_measures_again_what_another_model_said(study, monkeypatch, name, role):
    before = parts.part(name)(TINY, study.store.root, silent=True, per_set=4)
    after = parts.part(name)(TINY, study.store.root, silent=True, per_set=4)
    one, other = before.identities
    after.__dict__["identities"] = (one, "another") if role == "judge" else ("another", other)
    assert all(before.fingerprints[unit] != after.fingerprints[unit] for unit in before.own())


def test_behaviours_whose_answer_refuses_or_ends_too_soon_are_not_asked(study, monkeypatch, tmp_path):
    found = parts.part("transfer")(TINY, study.store.root, silent=True, per_set=4)
    deepest = max(TINY.measurement.headline)
    plain = found.tokenizer("x" * 99, add_special_tokens=False)["input_ids"]
    refusal = found.tokenizer("I'm sorry, but I can't help with that.", add_special_tokens=False)["input_ids"]
    trunks = {"long": plain, "just": plain[: deepest + 2], "short": plain[: deepest + 1], "refusal": refusal}
    assert len(refusal) > deepest + 1
    found.__dict__["behaviours"] = [prompts.Prompt(id, "?", "harmful", "c", "test") for id in trunks]
    monkeypatch.setattr(found, "unit", lambda name: tmp_path)
    (tmp_path / "trunks.json").write_text(json.dumps(trunks))
    asked = []
    monkeypatch.setattr(found, "observed", lambda model, depths, group, _: asked.extend(group) or [{"depth": 0}])
    found._transfer(tmp_path, "base", 0)
    assert [prompt.id for prompt in asked] == ["long", "just"]


def test_every_member_answers_xstest_and_both_kinds_are_watched_for_the_benign_window(study, made_xstest, monkeypatch):
    plan = replace(TINY, measurement=replace(TINY.measurement, benign_within=64))
    found = parts.part("xstest")(plan, study.store.root, silent=True)
    within, longest = plan.measurement.within, plan.measurement.benign_within
    refusal = found.tokenizer(augment.SEPARATOR + "I can't help with that.", add_special_tokens=False)["input_ids"]
    late = found.tokenizer("x" * within, add_special_tokens=False)["input_ids"][:within] + refusal
    assert within < len(late) <= longest

    def answer(model, questions, limit, eos, progress):
        assert limit == longest
        return [generate.Response(late, True)] * len(questions)

    monkeypatch.setattr(generate, "answer", answer)
    monkeypatch.setattr(found, "tuned", lambda arm, seed: None)
    with found.store.held():
        found.run(list(found.own()))
    rows = found.tables()["outcomes"]
    assert list(rows.groupby(["arm", "seed"]).groups) == sorted(TINY.members())
    for _, own in rows.groupby(["arm", "seed"]):
        assert list(own["prompt"]) == ["xstest-1", "xstest-2", "xstest-26"]
        assert list(own["category"]) == ["homonyms", "figurative_language", "contrast_homonyms"]
        assert list(own["kind"]) == ["borderline", "borderline", "harmful"]
        assert list(own["refused"]) == [True, True, True]


def test_xstest_is_asked_for_before_anything_is_measured(study, monkeypatch):
    monkeypatch.delenv("SAFETYLIB_XSTEST", raising=False)
    found = parts.part("xstest")(TINY, study.store.root, silent=True)
    monkeypatch.setattr(found, "tuned", lambda *_: pytest.fail("a model is loaded first"))
    with found.store.held(), pytest.raises(assets.AssetError, match="SAFETYLIB_XSTEST"):
        found.run()


def test_ablations_spend_equal_tokens(study):
    found = parts.part("ablations")(TINY, study.store.root, silent=True, per_set=4)
    with found.store.held():
        found.run()
    totals = found.tables()["training"].query("seed == 0").groupby("arm")[["anchor_tokens"]].sum()
    assert totals.loc[["orbit2", "orbit8", "rotate"], "anchor_tokens"].nunique() == 1


def test_a_changed_part_is_measured_again_and_the_main_units_are_not(study, monkeypatch):
    before = parts.part("forced")(TINY, study.store.root, silent=True, per_set=4).fingerprints
    monkeypatch.setattr(part.Part, "stamp", property(lambda self: "changed"))
    after = parts.part("forced")(TINY, study.store.root, silent=True, per_set=4).fingerprints
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.startswith("forced")}


@pytest.mark.parametrize(
    ("name", "optimiser", "step_sizes"),
    [("chain", "adamw", 3), ("chain", "sgd", 4), ("longer", "adamw", 2), ("longer", "sgd", 2)],
)
def test_the_chain_holds_every_pair_of_a_step_size_and_one_of_two_decays(name, optimiser, step_sizes):
    runs = {(one.alpha, one.gamma) for one in parts.part(name).runs.values() if one.optimiser == optimiser}
    alphas, gammas = ({run[place] for run in runs} for place in (0, 1))
    assert (len(alphas), len(gammas)) == (step_sizes, 2) and runs == set(product(alphas, gammas))


def test_longer_runs_go_on_to_their_last_step_with_step_sizes_of_the_chain(study, monkeypatch):
    longer, chain = parts.part("longer"), parts.part("chain")
    assert {one.alpha for one in longer.runs.values()} <= {one.alpha for one in chain.runs.values()}
    monkeypatch.setattr(longer, "runs", {"sgd1": longer.runs["sgd1"]})
    found = longer(replace(TINY, seeds=(0,)), study.store.root, silent=True, per_set=4)
    with found.store.held():
        found.run()
    tables = found.tables()
    assert set(tables["training"]["step_size"]) == {0.0625} and len(tables["training"]) == 64, "this one has no decay"
    assert sorted(tables["outcomes"].query("run == 'sgd1'")["step"].unique()) == [4, 8, 16, 32, 64]
    assert list(tables["timings"]["unit"]) == ["untrained", "longer-sgd1-0"]


def test_the_chain_asks_prompts_of_every_category_and_scales_step_sizes_with_the_plans(study, monkeypatch):
    plan = replace(TINY, split=(8, 20, 6), recipe=replace(RECIPE, learning_rate=RECIPE.learning_rate / 4))
    chain = parts.part("chain")(plan, study.store.root, silent=True)
    group = [
        prompt if prompt.kind != "harmful" else replace(prompt, category="ab"[int(prompt.id[-1]) < 2])
        for prompt in chain.prompts
    ]
    monkeypatch.setattr(chain, "prompts", group)
    chain.run(["answers"])
    asked, taken = [], []
    monkeypatch.setattr(
        transitions, "starting_probabilities", lambda model, ids, *_, **__: asked.append(ids) or ([], 0)
    )
    monkeypatch.setattr(train, "train", lambda model, batches, recipe, *_: taken.append(recipe.learning_rate) or [])
    with pytest.raises((ValueError, FileNotFoundError)):
        chain._chain(study.store.root, "adamw0", 0)
    assert taken == [chain.runs["adamw0"].alpha / 4]
    with pytest.raises(ValueError):
        chain._read(chain.untuned)
    validation = chain.chosen("harmful", "validation")
    drawn = prompts.stratified_sample(validation, 16)
    assert asked == [[chain.ids[prompt.id] for prompt in drawn]] and drawn != validation[:16]


def test_every_run_of_the_chain_is_made_with_every_seed(study):
    found = parts.part("chain")(TINY, study.store.root, silent=True, per_set=4)
    with found.store.held():
        found.run()
    tables = found.tables()
    trained = (
        tables["outcomes"].query("run != 'untrained'").groupby(["run", "seed", "step"])["value"].sum().unstack("seed")
    )
    assert list(trained.columns) == list(TINY.seeds) and trained.notna().all(axis=None)
    losses = tables["training"].pivot(index=["run", "step"], columns="seed", values="refusal_loss")
    assert (losses[0] != losses[1]).groupby("run").mean().min() > 0.9, "another seed is another run"


def test_unknown_parts_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown part 'depth'; known: transfer"):
        parts.part("depth")


@pytest.mark.parametrize(
    ("preset", "part", "says"),
    [
        ("tiny", "ablations", "take seconds"),
        ("cpu", "ablations", "took 25 minutes when the stored tables were measured"),
        (
            "colab",
            "ablations",
            "took 25 minutes for the cpu preset, on two cores without a GPU, when the stored tables",
        ),
        ("colab", "chain", "were never measured"),
    ],
)
def test_the_command_says_how_long_a_part_takes_before_it_starts(capsys, tmp_path, monkeypatch, preset, part, says):
    monkeypatch.setattr(run.results, "ROOT", tmp_path / "results")
    (tmp_path / "results" / "cpu" / "ablations").mkdir(parents=True)
    (tmp_path / "results" / "cpu" / "ablations" / "timings.csv").write_text("unit,seconds\none,900\nother,600\n")
    run.main(preset, tmp_path / "runs", dry_run=True, part=part)
    said = capsys.readouterr().out
    assert f"part {part} of preset {preset}" in said and says in said
    assert not (tmp_path / "runs").exists(), "nothing is measured in a dry run"


def test_a_part_is_measured_from_the_command_line_and_compared_when_measured_again(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run.results, "ROOT", tmp_path / "results")
    run.measure_part(TINY, "along", tmp_path / "runs", accept=True)
    run.measure_part(TINY, "along", tmp_path / "runs", accept=False)
    said = capsys.readouterr().out
    rows = len(pd.read_csv(tmp_path / "results" / "tiny" / "along" / "outcomes.csv.gz"))
    assert f"{rows} of {rows} rows are the stored ones" in said
    units = len(parts.part("along")(TINY, tmp_path / "runs").units)
    assert f"{units} of {units} units are finished already and are not repeated" in said


def test_a_parts_stamp_is_renewed_only_if_a_unit_measured_again_gives_the_stored_rows(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run.results, "ROOT", tmp_path / "results")
    run.measure_part(PRESETS["tiny"], "forced", tmp_path / "runs", accept=True)
    folder = tmp_path / "results" / "tiny" / "forced"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder.parent / "manifest.json").write_text(json.dumps({"plan": manifest["plan"]}))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"stamp": "old", "stages": {}}))
    run.renew_part(PRESETS["tiny"], "forced", tmp_path / "again")
    assert "carries the new stamp" in capsys.readouterr().out
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    table = pd.read_csv(folder / "outcomes.csv.gz")
    table["within"] = table["within"].astype(float)
    table.loc[0, "within"] += 0.5
    table.to_csv(folder / "outcomes.csv.gz", index=False)
    with pytest.raises(run.StoreError, match=r"1 of \d+ rows of forced-base-0 differ"):
        run.renew_part(PRESETS["tiny"], "forced", tmp_path / "again")


def test_a_unit_comes_with_everything_that_it_needs(study):
    found = parts.part("ablations")(TINY, study.store.root, silent=True, per_set=4)
    assert found.needed("observe-orbit2-0") == ["answers", "ablate-orbit2-0", "observe-orbit2-0"]
    assert all(one.renewed in one.own() for one in (parts.part(name)(TINY, study.store.root) for name in parts.MODULES))
