"""The study from beginning to end on the tiny preset: tables, resumption, a kill, comparison, the operating point."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from made_results import made
from safetensors import SafetensorError

from safetylib.study import (
    augment,
    compare,
    diagnostics,
    hub,
    models,
    operating_point,
    parts,
    prompt_sets,
    prompts,
    run,
    store,
)
from safetylib.study import results as results_module
from safetylib.study.assets import AssetError
from safetylib.study.command import told
from safetylib.study.presets import ARMS, GROUPS, PRESETS, preset
from safetylib.study.registry import MODELS
from safetylib.study.results import Results
from safetylib.study.run import Study
from safetylib.study.store import StoreError

TINY = PRESETS["tiny"]
PER_SET = 3
MEMBERS = [("base", 0), *product(ARMS[1:], (0, 1))]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The tiny preset, measured once with three prompts a set."""
    study = Study(TINY, tmp_path_factory.mktemp("study"), silent=True, per_set=PER_SET)
    with study.store.held():
        study.run()
        study.write_tables(study.store.root / "tables")
    return study


@pytest.fixture(scope="module")
def results(study):
    return Results(study.store.root / "tables")


def units(folder):
    """Finished units and when they were finished; a scratch folder that was killed just before its rename is none."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*/unit.json")}


# --- tables -----------------------------------------------------------------------------------------------------------


def test_every_arm_and_seed_answers_every_prompt_at_every_depth(study, results):
    expected = set()
    for (arm, seed), prompt in product(MEMBERS, study.prompts):
        asked = {
            ("harmful", "test"): TINY.measurement.depths,
            ("harmful", "validation"): TINY.measurement.judged_depths,
            ("plain", "test"): (0,),
            ("borderline", "test"): (0,),
        }.get((prompt.kind, prompt.split), ())
        if prompt.id not in study.left_out:
            expected |= {(arm, seed, prompt.split, prompt.kind, prompt.id, depth) for depth in asked}
    keys = ["arm", "seed", "split", "kind", "prompt", "depth"]
    found = list(results.outcomes[keys].itertuples(index=False, name=None))
    assert len(found) == len(set(found)) and set(found) == expected
    assert len(found) == len(MEMBERS) * PER_SET * (3 + 1 + 1 + 1), "no prompt is left out of the tiny preset"


def test_the_judge_is_asked_at_the_judged_depths_and_says_what_it_could_not_score(results):
    outcomes = results.outcomes
    judged = outcomes["depth"].isin(TINY.measurement.judged_depths) & (outcomes["kind"] == "harmful")
    assert outcomes.loc[~judged, ["safety", "unscored"]].isna().all(axis=None)
    scored = outcomes.loc[judged, "unscored"].astype(str) == "False"
    assert scored.any() and outcomes.loc[judged, "unscored"].notna().all()
    assert outcomes.loc[judged, "safety"].notna().eq(scored).all()
    assert outcomes["safety"].dropna().between(0, 1).all()


def test_training_has_a_row_a_step_and_the_step_size_decays(results):
    recipe, training = TINY.recipe, results.training
    assert len(training) == 5 * 2 * recipe.steps
    for _, rows in training.groupby(["arm", "seed"]):
        assert list(rows["step"]) == list(range(recipe.steps))
        assert np.allclose(rows["step_size"], recipe.learning_rate * recipe.decay ** rows["step"], atol=1e-5)
        assert np.isfinite(rows[["refusal_loss", "anchor_loss"]]).all(axis=None)


def test_arms_of_one_seed_see_as_many_anchor_tokens(results):
    totals = results.training.groupby(["seed", "arm"])["anchor_tokens"].sum().unstack()
    assert (totals.nunique(axis=1) == 1).all()


def test_timings_cover_every_unit(study, results):
    assert (
        set(results.timings["unit"]) == set(study.units) == {path.rsplit("-", 1)[0] for path in units(study.store.root)}
    )
    assert len(study.units) == 1 + 10 + 11 + 11


def test_the_manifest_says_where_the_numbers_come_from(study, results):
    manifest = results.manifest
    assert manifest["preset"] == "tiny" and manifest["plan"]["seeds"] == [0, 1]
    assert set(manifest["stages"]) == {"data", "training", "generation", "judging"}
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(manifest["packages"])
    assert all(len(digest) == 64 for digest in manifest["assets"].values()) and manifest["assets"]
    assert manifest["prompts"]["harmful test"] == PER_SET and sum(manifest["prompts"].values()) == 9 * PER_SET
    assert manifest["left_out"] == {} and manifest["python"] and manifest["machine"] and len(manifest["date"]) == 10
    assert str(study.store.root) not in json.dumps(manifest), "no paths"


def test_the_manifest_names_the_commit_of_a_downloaded_prompt_set(study, monkeypatch):
    monkeypatch.setattr(prompt_sets, "revisions", lambda source: {"owner/prompts": source})
    assert study.manifest()["revisions"] == {"owner/prompts": study.plan.prompts}


@pytest.mark.parametrize(("flags", "named"), [("fpu avx512_bf16 amx_bf16", ["amx_bf16", "avx512_bf16"]), ("fpu", [])])
def test_a_machine_is_told_by_what_it_rounds_with(monkeypatch, flags, named):
    monkeypatch.setattr(store.Path, "read_text", lambda *_: f"flags : {flags}")
    assert store.machine().split(", ")[2:] == named


def test_tables_hold_no_text(results):
    """Ids and scores only: every cell of a text column is a short name."""
    texts = results.outcomes.select_dtypes(exclude=["number", "bool"]).drop(columns="unscored")
    assert set(texts) == {"arm", "split", "kind", "prompt"}
    assert texts.map(lambda cell: len(cell) <= 20 and " " not in cell).all(axis=None)


# --- resumption -------------------------------------------------------------------------------------------------------


def fails(*_, **__):
    raise AssertionError("a finished unit is repeated")


def test_a_second_run_repeats_nothing_and_gives_the_same_tables(study, tmp_path, monkeypatch, capsys):
    for stage in ("_answers", "_train", "_generate", "_judge"):
        monkeypatch.setattr(Study, stage, fails)
    before = units(study.store.root)
    again = Study(TINY, study.store.root, per_set=PER_SET)
    again.run()
    assert "33 of 33 units are finished already" in capsys.readouterr().out
    again.write_tables(tmp_path / "tables")
    assert units(study.store.root) == before
    for name in ("outcomes.csv.gz", "training.csv", "timings.csv"):
        assert (tmp_path / "tables" / name).read_bytes() == (study.store.root / "tables" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "repeated"),
    [
        ({}, set()),
        ({"seeds": (0, 1, 2)}, {"train", "generate", "judge"}),
        ({"arms": ("base", "cyclic")}, set()),
        ({"recipe": replace(TINY.recipe, learning_rate=1e-4)}, {"train", "generate", "judge"}),
        ({"recipe": replace(TINY.recipe, anchor_tokens=5)}, {"answers", "train", "generate", "judge"}),
        ({"recipe": replace(TINY.recipe, deep_position=9)}, {"answers", "train", "generate", "judge"}),
        ({"measurement": replace(TINY.measurement, after=9)}, {"generate", "judge"}),
        ({"measurement": replace(TINY.measurement, within=7)}, {"answers", "train", "generate", "judge"}),
        ({"judge": "tiny-random-gemma"}, {"judge"}),
        ({"split": (8, 4, 5)}, {"answers", "train", "generate", "judge"}),
    ],
    ids=[
        "nothing",
        "a seed more",
        "fewer arms",
        "learning rate",
        "anchors",
        "deeper",
        "after",
        "within",
        "judge",
        "split",
    ],
)
def test_a_changed_plan_repeats_what_depends_on_the_change(study, change, repeated):
    other = Study(replace(TINY, **change), study.store.root, silent=True, per_set=PER_SET)
    missing = [name for name in other.units if not study.store.finished(name, other.fingerprints[name])]
    assert {name.split("-")[0] for name in missing} == repeated
    if "seeds" in change:
        assert all(name.endswith("-2") for name in missing)


def test_the_judge_is_the_one_that_the_plan_names(tmp_path):
    plan = replace(TINY, arms=("base",), judge="no-such-judge")
    with pytest.raises(ValueError, match="no-such-judge"):
        Study(plan, tmp_path, silent=True, per_set=1).run()
    assert units(tmp_path) == {}, "refused before any work"


def test_a_response_that_does_not_refuse_in_time_has_not_complied_after_refusing(study, monkeypatch):
    """A refusal beyond the window is none, so nothing can follow it."""
    late = "The box is red. I can't help with that. It could hurt. " + "Open the box and take out the paper. " * 4
    monkeypatch.setattr(study, "text", lambda tokens: late if len(tokens) > 50 else "The box is red.")
    row = {"split": "test", "kind": "harmful", "prompt": "p", "depth": 0, "tokens": [1] * 60}
    outcome = study._outcome("cyclic", 0, row)
    assert (outcome["refused"], outcome["complied_after"]) == (False, False)


def command(into, *more):
    return [sys.executable, "-m", "safetylib.study.run", "--preset", "tiny", "--into", str(into), *more]


def test_a_killed_study_goes_on_where_it_stopped(tmp_path):
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command(tmp_path), **quiet) as process:
        deadline = time.monotonic() + 300
        while len(units(tmp_path)) < 12 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finished = units(tmp_path)
    assert 12 <= len(finished) < 33 and not (tmp_path / "tables").exists()
    done = subprocess.run(command(tmp_path), **quiet, check=True)
    after = units(tmp_path)
    assert f"{len(finished)} of 33 units are finished already" in done.stdout
    assert {name: after[name] for name in finished} == finished, "a finished unit is not touched"
    assert len(after) == 33 and not list(tmp_path.glob(".incoming-*"))
    tables = Results(tmp_path / "tables")
    assert len(tables.outcomes) == len(MEMBERS) * (6 * 3 + 4 + 6 + 6)
    assert tables.manifest["prompts"]["harmful test"] == 6


def test_two_processes_of_a_launch_measure_what_one_does(study, tmp_path):
    """Each takes members of its own; the first waits for the other, and writes the tables."""
    launched = [
        subprocess.Popen(
            command(tmp_path),
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=600)[0] for process in launched]
    assert [process.returncode for process in launched] == [0, 0]
    assert "Tables:" in said[0] and "Tables:" not in said[1]
    assert len(units(tmp_path)) == 33
    both = Results(tmp_path / "tables").outcomes
    assert len(both) == len(MEMBERS) * (6 * 3 + 4 + 6 + 6)


def test_members_are_shared_whole_and_every_unit_has_one_owner(study):
    shares = [Study._share(study.units, process, 3) for process in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(study.units)
    owners = [{name.partition("-")[2] for name in share if "-" in name} for share in shares]
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    assert "answers" in shares[0] and {len(owner) for owner in owners} == {3, 4}


# --- the command ------------------------------------------------------------------------------------------------------


def test_an_unknown_preset_is_refused_and_the_known_ones_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown preset 'huge'; known: .*cpu.*tiny"):
        preset("huge")
    with pytest.raises(ValueError, match="huge"):
        run.main("huge", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [None, "forced"])
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(("field", "value"), [("model", "Qwen3-1B"), ("judge", "Qwen3-1B"), ("prompts", "nowhere.csv")])
def test_a_plan_with_something_that_is_not_there_is_refused_before_a_folder_is_made(
    tmp_path, monkeypatch, field, value, dry_run, part
):
    monkeypatch.setattr(run, "preset", lambda name: replace(TINY, name=name, **{field: value}))
    with pytest.raises((ValueError, OSError), match=value):
        run.main("made", tmp_path / "units", dry_run=dry_run, part=part)
    assert not (tmp_path / "units").exists()


def test_a_part_is_told_without_a_folder_or_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "locate", fails)
    run.main("colab", tmp_path / "units", dry_run=True, part="along")
    assert "part along of preset colab" in capsys.readouterr().out and not (tmp_path / "units").exists()


def test_a_dry_run_measures_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Study, "run", fails)
    run.main("tiny", tmp_path / "units", dry_run=True)
    assert "11 models" in capsys.readouterr().out and not (tmp_path / "units").exists()


@pytest.mark.parametrize("name", [*PRESETS, *GROUPS])
def test_every_plan_is_told_with_models_licences_prompts_steps_memory_and_time(name, tmp_path, capsys):
    run.main(name, tmp_path / "units", dry_run=True)
    told = capsys.readouterr().out
    plans = [PRESETS[member] for member in GROUPS.get(name, (name,))]
    assert told.count("preset ") >= len(plans)
    for plan in plans:
        recipe = plan.recipe
        assert all(word in told for word in (f"preset {plan.name}", plan.model, plan.prompts, f"{recipe.steps} steps"))
        for known in (MODELS[model] for model in {plan.model, plan.judge} & set(MODELS)):
            assert known.licence in told and (f"accept it at {known.page}" in told) is known.gated
        assert (told.count("datasets/LLM-Tuning-Safety/HEx-PHI") == len(plans)) is (plan.prompts == "HEx-PHI")
        assert ("are never loaded" in told) is (plan.prompts == "HEx-PHI")
        if plan.name not in ("cpu", "tiny"):
            assert "GiB" in told and "never measured by anybody; about" in told and "minutes" not in told
            assert re.search(r"a guess is \d+\.\d hours", told)
    if name == "cpu":
        assert re.search(r"time +about \d+ minutes on the machine of the stored results", told)


def test_a_stamp_is_renewed_where_the_rows_are_the_stored_ones_or_the_old_codes_on_this_machine(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run.results, "ROOT", tmp_path / "results")
    monkeypatch.setattr(run, "Study", lambda plan, into, **_: Study(plan, into, True, 1))
    plan, here = replace(TINY, name="made", arms=("base", "cyclic"), seeds=(0,)), tmp_path / "here"
    study = Study(plan, here, True, 1)
    study.run()
    study.write_tables(tmp_path / "results" / "made")
    run.renew(plan, here)
    assert "carries the new stamp" in capsys.readouterr().out

    stored = tmp_path / "results" / "made" / "outcomes.csv.gz"
    table = pd.read_csv(stored)
    table.assign(refused=~table["refused"]).to_csv(stored, index=False)  # as if another machine had rounded otherwise
    with pytest.raises(StoreError, match="rows of cyclic, seed 0 differ from the stored ones"):
        run.renew(plan, here)
    old = tmp_path / "old" / "judge-cyclic-0-0123456789abcdef"
    shutil.copytree(study.unit("judge-cyclic-0"), old)
    manifest = tmp_path / "results" / "made" / "manifest.json"
    told = manifest.read_text()
    manifest.write_text(told.replace(study.stages["training"], "the code before"))
    with pytest.raises(StoreError, match="holds no judge-cyclic-0 measured by the code that the stored results carry"):
        run.renew(plan, here, old.parent)  # what other code measured, the present one's included, proves nothing
    manifest.write_text(told)
    run.renew(plan, here, old.parent)
    assert "carries the new stamp" in capsys.readouterr().out
    table = pd.read_csv(old / "outcomes.csv")
    table.assign(refused=~table["refused"]).to_csv(old / "outcomes.csv", index=False)
    with pytest.raises(StoreError, match="differ from those in"):
        run.renew(plan, here, old.parent)
    for how in ({}, {"renew_stamp": True, "part": "forced"}):
        with pytest.raises(ValueError, match="--against belongs to --renew"):
            run.main("tiny", against=old.parent, **how)


def test_a_group_measures_its_members_one_after_another(monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(run, "GROUPS", {"both": ("one", "two")})
    monkeypatch.setattr(run, "preset", lambda name: replace(TINY, name=name, arms=("base", "shallow"), seeds=(0,)))
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "Study", lambda plan, into, **_: measured.append(into) or Study(plan, into, True, 1))
    run.main("both", tmp_path / "units")
    assert measured == [tmp_path / "units" / "one", tmp_path / "units" / "two"]
    assert all((into / "tables" / "manifest.json").is_file() for into in measured)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The command on a slice of two arms, in a house of its own; returns its root."""

    def plan(name):
        return replace(TINY, name=name, arms=("base", "shallow"))

    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "preset", plan)
    monkeypatch.setattr(run, "Study", lambda plan, into, **_: Study(plan, into, silent=True, per_set=1))
    return tmp_path


def test_tables_of_the_tiny_preset_are_never_accepted(small):
    with pytest.raises(ValueError, match="never results"):
        run.main("tiny", accept=True)
    assert not (small / "results").exists()


def test_what_cannot_be_accepted_is_refused_before_measuring(small, monkeypatch):
    measured = []
    monkeypatch.setattr(Study, "run", lambda self: measured.append(self))
    with pytest.raises(ValueError, match="never results"):
        run.main("tiny", accept=True)
    assert measured == []


def test_accepted_tables_take_the_place_of_the_stored_ones_and_nothing_else(small):
    """The table behind the operating point lies in the same folder, and no run measures it again."""
    stored = small / "results" / "made"
    stored.mkdir(parents=True)
    (stored / "operating_point.csv").write_text("candidate\n")
    run.main("made", accept=True)
    assert len(Results(stored).outcomes) == 3 * 6
    assert (stored / "operating_point.csv").read_text() == "candidate\n"


def test_accepted_tables_can_be_compared_with_the_next_run(small, capsys):
    run.main("made", accept=True)
    run.main("made")
    assert "Agrees with the stored results" in capsys.readouterr().out
    assert (small / "runs" / "made" / "tables" / "manifest.json").is_file()


def test_fewer_seeds_are_compared_and_leave_the_whole_study_to_go_on(small, capsys):
    run.main("made", accept=True, into=small / "units")
    run.main("made", seeds=1, into=small / "units")
    said = capsys.readouterr().out
    assert "Agrees with the stored results" in said and "--accept" not in said.rpartition("Agrees")[2]
    fewer, whole = (Results(small / "units" / name) for name in ("tables-of-1", "tables"))
    assert fewer.manifest["plan"]["seeds"] == [0] and len(fewer.outcomes) == 2 * 6
    assert whole.manifest["plan"]["seeds"] == [0, 1] and len(whole.outcomes) == 3 * 6


@pytest.mark.parametrize("other", [{"accept": True}, {"renew_stamp": True}, {"part": "forced"}])
def test_fewer_seeds_are_for_comparing_only(small, other):
    with pytest.raises(ValueError, match="not with --accept, --renew or --part"):
        run.main("made", seeds=1, **other)
    assert not list(small.iterdir())


@pytest.mark.parametrize("seeds", [0, 3, -1])
def test_as_many_seeds_as_the_plan_has_not_are_refused(small, seeds):
    with pytest.raises(ValueError, match="--seeds takes 1 to 2"):
        run.main("made", seeds=seeds)
    assert not list(small.iterdir())


@pytest.fixture
def with_parts(small, monkeypatch):
    """The same, with its parts."""
    part = parts.part
    monkeypatch.setattr(results_module, "ROOT", small / "results")
    monkeypatch.setattr(parts, "part", lambda name: lambda plan, into, **_: part(name)(plan, into, True, 1))
    return small


def replan(folder, **changes):
    """Give stored tables another plan."""
    manifest = folder / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"plan": told["plan"] | changes}))


def test_an_accepted_plan_leaves_parts_of_another_plan_unread_and_says_so(with_parts, capsys):
    run.main("made", accept=True)
    run.main("made", part="forced", accept=True)
    stored = Results(with_parts / "results" / "made")
    assert len(stored.part("forced"))
    replan(stored.folder / "forced", seeds=[7])
    with pytest.raises(FileNotFoundError, match="forced in made/ was measured under another plan"):
        stored.part("forced")
    capsys.readouterr()
    run.main("made", accept=True)
    assert "Of another plan, and refused until they are measured again: forced." in capsys.readouterr().out
    assert (stored.folder / "forced" / "outcomes.csv.gz").is_file(), "nothing that was finished is lost"
    with pytest.raises(StoreError, match="another plan"):
        run.main("made", part="forced", renew_stamp=True)


def test_a_part_of_another_plan_than_the_main_tables_says_so(with_parts, capsys):
    run.main("made", accept=True)
    replan(with_parts / "results" / "made", seeds=[7])
    run.main("made", part="forced", accept=True)
    assert "The main tables of results/made are of another plan" in capsys.readouterr().out
    with pytest.raises(StoreError, match="another plan"):
        run.main("made", renew_stamp=True)


def test_a_study_of_the_untuned_model_alone_has_tables(tmp_path):
    plan = replace(TINY, arms=("base",))
    study = Study(plan, tmp_path / "units", silent=True, per_set=1)
    study.run()
    study.write_tables(tmp_path / "tables")
    found = Results(tmp_path / "tables")
    assert set(found.outcomes["arm"]) == {"base"} and found.training.empty
    assert diagnostics.report(found) == "No failure signature."


def test_a_damaged_unit_is_named_with_what_to_do(tmp_path):
    plan = replace(TINY, arms=("base",))
    study = Study(plan, tmp_path, silent=True, per_set=1)
    study.run(["answers", "generate-base-0"])
    responses = study.unit("generate-base-0") / "responses.json"
    responses.write_text(responses.read_text()[:50])
    with pytest.raises(
        StoreError, match=r"judge-base-0: a finished unit that it builds on is damaged .*delete the damaged folder"
    ):
        Study(plan, tmp_path, silent=True, per_set=1).run()


def test_positions_beyond_every_depth_are_still_read_whole(tmp_path):
    """A plan may train deeper than it measures: the untuned answers reach as far as either."""
    shallow = replace(TINY.measurement, depths=(0, 2), headline=(2,))
    plan = replace(TINY, measurement=shallow, recipe=replace(TINY.recipe, orbit=(0, 10, 20), deep_position=20))
    study = Study(plan, tmp_path, silent=True, per_set=2)
    study.run(["answers"])
    batch = next(augment.batches("deep", plan.recipe, study.material, 0))
    lengths = {tuple(prompt): len(prompt) for prompt, _ in study.material.harmful}
    found = [
        len(example.context) - length
        for example in batch
        for prompt, length in lengths.items()
        if example.kind == "refusal" and tuple(example.context[:length]) == prompt
    ]
    assert found and set(found) == {20}


# --- what a command says when it ends badly ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("no such arm"), "made: no such arm"),
        (StoreError("held by another"), "made: held by another"),
        (FileNotFoundError("no results in made/"), "made: no results in made/"),
        (OSError(errno.ENOSPC, "No space left on device"), "made: a file or folder could not be read or written"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), "made: a file or folder could not be read or written"),
        (SafetensorError("No space left on device"), "Finished units are kept"),
        (KeyboardInterrupt(), "Interrupted. Finished units are kept"),
    ],
)
def test_a_command_ends_with_a_sentence(error, says):
    with pytest.raises(SystemExit) as ended, told("made"):
        raise error
    assert says in str(ended.value) and "\n" not in str(ended.value).strip()


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(KeyError), told("made"):
        raise KeyError("depth")


# --- comparison -------------------------------------------------------------------------------------------------------


def table(folder, shift=0, without=(), **plan):
    """Three seeds, 40 prompts, two depths; member s refuses the first 20 + s + shift prompts after a prefix."""
    rows = []
    for arm, kind in (
        ("base", "harmful"),
        ("cyclic", "harmful"),
        *product(("base", "cyclic"), ("plain", "borderline")),
    ):
        for seed, prompt, depth in product((0,) if arm == "base" else range(3), range(40), (0, 5)):
            if (kind == "harmful" or depth == 0) and (arm, seed, prompt) not in without:
                refused = arm == "cyclic" and prompt < 20 + seed + (shift if kind == "harmful" and depth else 0)
                row = {"arm": arm, "seed": seed, "kind": kind, "prompt": f"p{prompt:02}", "depth": depth}
                rows.append({**row, "refused": refused})
    return made(folder, rows, depths=(0, 5), **plan)


def test_tables_agree_with_themselves(tmp_path, results):
    for same in (results, table(tmp_path)):
        differences = compare.differences(same, same)
        assert (differences["difference"] == 0).all() and (differences["band"] > 0).all()
        assert compare.report(same.folder, same.folder).startswith("Agrees")
    assert len(differences) == 2 * 2 + 2 * 2


@pytest.mark.parametrize(("shift", "agrees"), [(1, True), (2, True), (15, False), (-15, False)])
def test_a_shifted_copy_lies_outside_the_band_once_the_shift_is_large(tmp_path, shift, agrees):
    stored, fresh = table(tmp_path / "stored"), table(tmp_path / "fresh", shift)
    cell = compare.differences(fresh, stored).query("arm == 'cyclic' and depth == 5 and kind == 'harmful'").iloc[0]
    assert cell["difference"] == pytest.approx(shift / 40) and bool(abs(cell["difference"]) <= cell["band"]) is agrees
    text = compare.report(fresh.folder, stored.folder)
    assert text.startswith("Agrees" if agrees else "DIFFERS")
    assert ("cyclic   depth  5: stored 0.525" in text) is not agrees


def test_a_fresh_study_of_one_seed_has_a_wider_band(tmp_path):
    stored = table(tmp_path / "stored")
    one = table(tmp_path / "fresh", seeds=(0,))
    one.__dict__["outcomes"] = one.outcomes.query("seed == 0")
    same, fewer = (compare.differences(fresh, stored)["band"] for fresh in (stored, one))
    assert fewer.to_numpy() == pytest.approx(same.to_numpy() * ((1 / 3 + 1) / (1 / 3 + 1 / 3)) ** 0.5)


def test_tables_of_another_plan_are_not_compared(tmp_path):
    stored, fresh = table(tmp_path / "stored"), table(tmp_path / "fresh", model="another")
    with pytest.raises(ValueError, match="the plans differ in model: another and made"):
        compare.differences(fresh, stored)
    assert compare.report(fresh.folder, stored.folder).startswith("Not comparable")


def test_tables_of_another_recipe_are_not_compared(tmp_path):
    stored = table(tmp_path / "stored", recipe={"steps": 3})
    fresh = table(tmp_path / "fresh", recipe={"steps": 300})
    assert compare.report(fresh.folder, stored.folder).startswith("Not comparable")


def test_a_fresh_table_with_a_hole_does_not_agree(tmp_path):
    stored = table(tmp_path / "stored")
    fresh = table(tmp_path / "fresh", shift=15, without={("cyclic", 2, 39)})
    assert not compare.report(fresh.folder, stored.folder).startswith("Agrees")


# --- the operating point ----------------------------------------------------------------------------------------------


def rates(**candidates):
    """Candidate -> (harmful, plain) of shallow, then of cyclic."""
    rows = []
    for name, values in candidates.items():
        for arm, (harmful, plain) in zip(("shallow", "cyclic"), (values[:2], values[2:]), strict=True):
            rows.append({"candidate": name, "arm": arm, "harmful": harmful, "plain": plain})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("table", "picked"),
    [
        pytest.param(rates(a=(0.95, 0.08, 0.95, 0.08), b=(0.92, 0.02, 0.91, 0.03)), "b", id="least over-refusal"),
        pytest.param(rates(a=(1, 0.09, 1, 0.09), b=(0.89, 0, 1, 0)), "a", id="one arm refuses too little"),
        pytest.param(rates(a=(1, 0.09, 1, 0.09), b=(1, 0, 1, 0.11)), "a", id="one arm refuses too much"),
        pytest.param(rates(a=(0.9, 0.1, 0.9, 0.1), b=(1, 0.2, 1, 0)), "a", id="the bounds themselves are met"),
        pytest.param(rates(a=(1, 0.02, 1, 0.06), b=(1, 0.04, 1, 0.04)), "a", id="a tie goes to the first"),
        pytest.param(
            rates(z=(1, 0.04, 1, 0.04), a=(1, 0.02, 1, 0.06)), "z", id="first in the table, not in the alphabet"
        ),
        pytest.param(rates(a=(0.5, 0, 1, 0), b=(1, 0.3, 1, 0)), "b", id="none admissible: least worst violation"),
        pytest.param(rates(a=(0.8, 0, 1, 0), b=(0.82, 0.18, 1, 0)), "b", id="the worst violation counts, not the sum"),
        pytest.param(rates(b=(0.5, 0, 1, 0), a=(1, 0, 0.5, 0)), "b", id="none admissible, a tie"),
    ],
)
def test_the_rule_picks(table, picked):
    assert operating_point.rule(table) == picked


def test_the_rule_looks_at_no_test_prompt(tmp_path):
    plan = replace(TINY, arms=("base", "shallow"), seeds=(100,))
    study = Study(plan, tmp_path, silent=True, per_set=1)
    found = study.validation_rates("shallow", 100)
    assert set(found) == {"harmful", "plain", "borderline"} and all(0 <= rate <= 1 for rate in found.values())
    assert {name.split("-")[0] for name in units(tmp_path)} == {"answers", "train", "validate"}


def test_the_recipe_takes_what_the_rule_picks():
    names = list(operating_point.CANDIDATES)
    table = rates(**{name: (1, 0.05 * place, 1, 0.05 * place) for place, name in enumerate(reversed(names))})
    recipe = operating_point.chosen(TINY, table)
    assert {key: getattr(recipe, key) for key in operating_point.CANDIDATES[names[-1]]} == operating_point.CANDIDATES[
        names[-1]
    ]
    assert recipe.steps == TINY.recipe.steps


def test_a_prompt_file_that_is_edited_in_place_makes_other_units(tmp_path):
    """The file's path stays the same; what stands in it is what a unit depends on."""
    file = tmp_path / "mine.csv"
    plan = replace(TINY, prompts=str(file), split=(2, 1, 1))
    fingerprints = []
    for word in ("red", "blue"):
        file.write_text("prompt\n" + "".join(f"Describe the {word} box {number}.\n" for number in range(4)))
        fingerprints.append(Study(plan, tmp_path / "units", silent=True).fingerprints)
    assert all(fingerprints[0][unit] != fingerprints[1][unit] for unit in fingerprints[0])


def test_a_saved_model_whose_weights_change_makes_other_units(tmp_path):
    """The folder's path stays the same; what lies in it is what a unit depends on."""
    folder = tmp_path / "mine"
    model, tokenizer = models.load("tiny-random-llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fingerprints = []
    for role in ("model", "judge"):
        plan = replace(TINY, **{role: str(folder)})
        fingerprints.append(Study(plan, tmp_path / "units", silent=True).fingerprints)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    for role, before in zip(("model", "judge"), fingerprints, strict=True):
        after = Study(replace(TINY, **{role: str(folder)}), tmp_path / "units", silent=True).fingerprints
        changed = {unit.split("-")[0] for unit in before if before[unit] != after[unit]}
        assert changed == ({"judge"} if role == "judge" else {unit.split("-")[0] for unit in before})


def test_what_one_kind_of_device_finished_is_not_taken_for_anothers(tmp_path, monkeypatch):
    here = Study(TINY, tmp_path, silent=True).fingerprints
    monkeypatch.setattr(models, "compute_dtype", lambda on, family="": torch.float16)
    there = Study(TINY, tmp_path, silent=True).fingerprints
    assert all(here[unit] != there[unit] for unit in here)


def test_a_model_that_judges_itself_is_looked_at_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(models, "identity", lambda name: asked.append(name) or name)
    study = Study(replace(TINY, judge=TINY.model), tmp_path, silent=True)
    assert study.fingerprints and study.identities == (TINY.model, TINY.model) and asked == [TINY.model]


@pytest.mark.parametrize("how", [{"part": "forced"}, {"renew_stamp": True}])
def test_work_for_one_process_is_refused_by_a_launch_of_several(tmp_path, monkeypatch, how):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="work for one process"):
        run.main("tiny", tmp_path / "units", **how)
    with pytest.raises(ValueError, match="work for one process"):
        operating_point.main("tiny")
    assert not (tmp_path / "units").exists()


def test_what_the_hub_refuses_is_known_before_a_model_is_fetched(monkeypatch, tmp_path):
    asked = []

    def refuses(repo, kind, page):
        asked.append(repo)
        if "llama" in repo.lower():
            raise AssetError(f"{repo} is gated")

    monkeypatch.setattr(hub, "require_access", refuses)
    monkeypatch.setattr(models, "locate", fails)
    monkeypatch.setattr(models, "require_memory", lambda plan: None)
    plan = replace(PRESETS["paper-qwen"], prompts="neutral", split=(8, 4, 6))
    with pytest.raises(AssetError, match="is gated"):
        Study(plan, tmp_path, silent=True).run()
    assert asked == [MODELS[plan.model].repo, MODELS[plan.judge].repo]


def test_one_id_for_two_prompts_is_refused(monkeypatch, tmp_path):
    benign = prompts.benign()
    twice = prompts.Prompt(benign[0].id, "How is thing number 3 done?", "harmful", "own", "test")
    monkeypatch.setattr(prompts, "harmful", lambda source, split: [twice])
    with pytest.raises(ValueError, match=f"the id {benign[0].id} stands for several prompts"):
        _ = Study(TINY, tmp_path, silent=True).prompts


def test_a_prompt_that_a_model_has_no_positions_for_is_refused(monkeypatch, tmp_path):
    study = Study(TINY, tmp_path, silent=True, per_set=1)
    positions = study.base.config.max_position_embeddings
    room = TINY.deepest + TINY.measurement.within + TINY.measurement.after
    monkeypatch.setattr(models, "chat_ids", lambda tokenizer, text: [5] * (positions - room))
    assert study.ids
    monkeypatch.setattr(models, "chat_ids", lambda tokenizer, text: [5] * (positions - room + 1))
    with pytest.raises(ValueError, match=f"{room} may follow, but tiny-random-llama has {positions} positions"):
        _ = Study(TINY, tmp_path, silent=True, per_set=1).ids
