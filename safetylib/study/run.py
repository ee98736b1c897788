"""Measure a study from the command line: run its units, compare with the stored results, accept, renew.

python -m safetylib.study.run --preset cpu             # measure, compare with results/cpu
python -m safetylib.study.run --preset cpu --accept    # and put the new tables in its place
python -m safetylib.study.run --preset cpu --dry-run   # only print the plan
python -m safetylib.study.run --preset paper           # the paper's three models, one study after another
accelerate launch -m safetylib.study.run --preset colab   # several GPUs: each takes members of its own
python -m safetylib.study.run --preset cpu --renew     # after a change of code that alters no result
python -m safetylib.study.run --preset cpu --part ablations     # a named piece beyond the main plan, by itself
"""

from __future__ import annotations

import gc
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from safetylib.study import command, compare, diagnostics, memory, models, parts, prompt_sets, prompts, results
from safetylib.study.presets import GROUPS, PRESETS, Preset, preset
from safetylib.study.registry import MODELS
from safetylib.study.store import StoreError, replace_folder, stage_fingerprints
from safetylib.study.units import Study

ROOT = results.ROOT.parent
KEPT = ("operating_point.csv", "judging", *parts.MODULES)  #: beside the main tables in results/<preset>/
_RENEWED_MEMBER = ("cyclic", 0)
_T4 = 14.6 * 2**30
_SPEED = 5e12  #: operations a second that a T4 is trusted with, for a guess of hours; nobody has measured it
_GATED_PROMPTS = {"HEx-PHI": "https://huggingface.co/datasets/LLM-Tuning-Safety/HEx-PHI"}


def describe(plan: Preset) -> str:
    """The plan in words, for ``--dry-run``.

    Raises
    ------
    ValueError
        It names a model or a file of prompts that is not there.
    """
    for name in (plan.model, plan.judge):
        models.require_known(name)
    if plan.prompts not in prompt_sets.SOURCES:
        prompts.harmful(plan.prompts, plan.split)
    recipe, measurement = plan.recipe, plan.measurement
    members = plan.members()
    gated = plan.prompts in _GATED_PROMPTS
    gate = (
        f" (own licence, accept it at {_GATED_PROMPTS[plan.prompts]}; categories 2 and 8 are never loaded)"
        if gated
        else ""
    )
    return "\n".join(
        [
            f"preset {plan.name}",
            f"  model     {_model(plan.model)}; in 4 bits",
            f"  judge     {'the model itself' if plan.judge == plan.model else _model(plan.judge)}",
            f"  arms      {', '.join(plan.arms)}; seeds {', '.join(map(str, plan.seeds))}; {len(members)} models",
            f"  training  {recipe.steps} steps of {recipe.harmful_per_step} harmful and {recipe.benign_per_step} benign "
            f"examples; step size {recipe.learning_rate} * {recipe.decay}^t; orbit {recipe.orbit}",
            f"  prompts   {plan.prompts}{gate}: {plan.split[0]} harmful for training, {plan.split[1]} validation, {plan.split[2]} test",
            f"  depths    {', '.join(map(str, measurement.depths))}; a refusal counts within {measurement.within} tokens",
            f"  units     1 of untuned answers, {len(members) - 1} trainings, {len(members)} generations, {len(members)} judgings",
            f"  memory    {_memory(plan)}",
            f"  time      {_time(plan)}",
        ]
    )


def _model(name: str) -> str:
    """A model's name, origin and licence."""
    known = MODELS.get(name)
    if known is None:
        return f"{name} (random weights, for tests)" if name.startswith(models.TINY) else f"the saved model in {name}"
    gate = f"accept it at {known.page}" if known.gated else "no account needed"
    return (
        f"{name}, {known.parameters / 1e9:.2f} billion parameters ({known.repo or 'embedded'}; {known.licence}, {gate})"
    )


def _memory(plan: Preset) -> str:
    """The memory estimate, for this machine's device or, for a GPU preset without one, for a GPU of 16 GB."""
    if plan.model not in MODELS or plan.judge not in MODELS:
        return "not estimated"
    on = models.device()
    packed = on.type == "cuda" or MODELS[plan.model].repo is not None
    room, device = (memory.free(on), "here") if packed == (on.type == "cuda") else (_T4, "on a GPU of 16 GB")
    found = memory.of_preset(plan, room, packed)
    beyond = ""
    if packed and on.type == "cpu":
        unpacked, free = memory.of_preset(plan, memory.free(on), False).peak, memory.free(on)
        beyond = (
            f"; this machine has no GPU, where it needs about {memory.gib(unpacked)} and {memory.gib(free)} are free"
        )
    phases = ", ".join(f"{phase} {memory.gib(needed)}" for phase, needed in found.phases.items())
    how = "; activations are computed twice" if found.recompute else ""
    return f"about {memory.gib(found.peak)} {device} ({phases}{how}); {memory.gib(room)} free{beyond}"


def _time(plan: Preset) -> str:
    """Minutes, from the stored results' median unit of each stage; for what nobody has measured, operations alone."""
    stored = results.ROOT / plan.name / "timings.csv"
    if stored.is_file():
        timings = pd.read_csv(stored)
        median = timings["seconds"].groupby(timings["unit"].str.partition("-")[0]).median()
        members = len(plan.members())
        count = {"answers": 1, "train": members - 1, "generate": members, "judge": members}
        minutes = sum(median.get(stage, 0.0) * number for stage, number in count.items()) / 60
        return f"about {minutes:.0f} minutes on the machine of the stored results"
    if plan.model not in MODELS:
        return "seconds"
    operations = memory.operations(plan)
    return (
        f"never measured by anybody; about {operations:.0e} floating-point operations: a guess is {operations / _SPEED / 3600:.1f} hours "
        f"on a GPU of 16 GB, at {_SPEED / 1e12:.0f} of its some sixty TFLOP/s"
    )


def renew(plan: Preset, into: Path, against: Path | None = None) -> None:
    """Measure one unit of every stage again; if the rows are the stored ones, give the results the code's new stamp.

    Units that the present code has finished in ``into`` already are not repeated. ``against`` names a folder into which the
    code that measured the stored results has measured the same units on this machine: where it rounds otherwise than the one
    of the stored results, its rows are what an innocent change must leave as they are.

    Raises
    ------
    StoreError
        The rows differ: the study has to be measured again. Or ``against`` holds no unit measured by the stored results' code.
    """
    arm, seed = _RENEWED_MEMBER
    folder = results.ROOT / plan.name
    stored = results.Results(folder)
    _require_plan(plan, folder)
    study = Study(plan, into)
    with study.store.held():
        study.run(["answers", *(f"{stage}-{arm}-{seed}" for stage in ("train", "generate", "judge"))])
        fresh = pd.read_csv(study.unit(f"judge-{arm}-{seed}") / "outcomes.csv")
    before = stored.outcomes.query("arm == @arm and seed == @seed").reset_index(drop=True)
    of = "the stored ones"
    if against is not None:
        before, of = _measured_by(stored.manifest["stages"], against, f"judge-{arm}-{seed}"), f"those in {against}"
    different = len(before) if before.shape != fresh.shape else int((~compare.same_rows(before, fresh)).sum())
    if different:
        raise StoreError(
            f"{different} of {len(before)} rows of {arm}, seed {seed} differ from {of}: the change alters results "
            f"(or this machine rounds differently: see --against). Measure again: make reproduce PRESET={plan.name} ARGS=--accept"
        )
    _restamp_parts(folder, stored.manifest["stages"])
    _write_manifest(folder, {"stages": stage_fingerprints()})
    print(f"All {len(before)} rows of {arm}, seed {seed} came out the same; results/{plan.name} carries the new stamp.")


def _measured_by(stages: dict[str, str], folder: Path, name: str) -> pd.DataFrame:
    """Outcomes of a unit that code with these fingerprints has measured into a folder."""
    for record in sorted(folder.glob(f"{name}-*/unit.json")):
        if json.loads(record.read_text()).get("stages") == stages:
            return pd.read_csv(record.with_name("outcomes.csv"))
    raise StoreError(
        f"{folder} holds no {name} measured by the code that the stored results carry. With that code checked out, "
        f"run --renew --into {folder}: it measures the unit, whatever it says of its rows."
    )


def renew_part(plan: Preset, name: str, into: Path) -> None:
    """Measure one of a part's units again; if its rows are the stored ones, give the part's tables the present stamps.

    Units that the present code has finished in ``into`` already are not repeated.

    Raises
    ------
    StoreError
        Rows differ, or another unit's rows are missing: the part has to be measured again.
    """
    folder = results.ROOT / plan.name / name
    _require_plan(plan, folder)
    stored = results.Results(folder.parent).part(name)
    study = parts.part(name)(plan, into, per_set=6 if plan.name == "tiny" else None)
    with study.store.held():
        study.run(study.needed(study.renewed))
    fresh = pd.read_csv(study.unit(study.renewed) / "rows.csv")
    before = stored.merge(fresh[list(study.keys)].drop_duplicates())
    different = len(fresh) if before.shape != fresh.shape else int((~compare.same_rows(before, fresh)).sum())
    if different:
        raise StoreError(
            f"{different} of {len(fresh)} rows of {study.renewed} differ from the stored ones: the change alters results (or "
            f"this machine rounds differently). Measure again: make reproduce PRESET={plan.name} PART={name} ARGS=--accept"
        )
    _write_manifest(folder, {"stages": stage_fingerprints(), "stamp": study.stamp})
    print(
        f"All {len(fresh)} rows of {study.renewed} came out the same; results/{plan.name}/{name} carries the new stamp."
    )


def _require_plan(plan: Preset, folder: Path) -> None:
    """Refuse to compare with tables of another plan; that there are none, who reads them says."""
    if _stored_plan(folder) not in (None, json.loads(json.dumps(asdict(plan)))):
        raise StoreError(
            f"{folder.relative_to(results.ROOT.parent)} was measured under another plan: measure it again, with --accept."
        )


def _stored_plan(folder: Path) -> dict | None:
    """The plan that stored tables were measured under; None if nothing is stored."""
    manifest = folder / "manifest.json"
    return json.loads(manifest.read_text())["plan"] if manifest.is_file() else None


def _write_manifest(folder: Path, changes: dict) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json.new").write_text(json.dumps(manifest | changes, indent=1) + "\n")
    os.replace(folder / "manifest.json.new", folder / "manifest.json")


def _restamp_parts(folder: Path, measured_under: dict[str, str]) -> None:
    """Carry the new stamp to the parts that were measured under the very code that was just compared."""
    for name in parts.MODULES:
        if (folder / name / "manifest.json").is_file():
            manifest = json.loads((folder / name / "manifest.json").read_text())
            if manifest["stages"] == measured_under:
                _write_manifest(folder / name, {"stages": stage_fingerprints()})
            elif manifest["stages"] != stage_fingerprints():
                print(
                    f"{name} was measured under other code and keeps its stamp: make reproduce PART={name} ARGS=--renew"
                )


def _time_of(preset: str, part: str) -> str:
    """How long a part's own units take: as its stored tables tell, or those of the cpu preset where it has none."""
    if preset == "tiny":
        return "take seconds"
    for stored, where in ((preset, ""), ("cpu", " for the cpu preset, on two cores without a GPU,")):
        timings = results.ROOT / stored / part / "timings.csv"
        if timings.is_file():
            minutes = pd.read_csv(timings)["seconds"].sum() / 60
            return f"took {minutes:.0f} minutes{where} when the stored tables were measured"
    return "were never measured"


def measure_part(plan: Preset, name: str, into: Path, accept: bool = False, dry_run: bool = False) -> None:
    """Measure one part, say how it differs from what is stored, and accept it if asked."""
    study = parts.part(name)(plan, into, per_set=6 if plan.name == "tiny" else None)
    print(
        f"part {name} of preset {plan.name}: {len(study.own())} units of its own, besides what they build upon; "
        f"its own {_time_of(plan.name, name)}"
    )
    if dry_run:
        return
    with study.store.held():
        study.run()
        fresh = study.store.root / "tables" / name
        study.write_tables(fresh)
    if (fresh / "training.csv").is_file():
        slow = diagnostics.little_learnt(pd.read_csv(fresh / "training.csv"), by=study.keys[0])
        print(diagnostics.in_words(slow))
    stored = results.ROOT / plan.name / name
    if (stored / "manifest.json").is_file():
        before, after = (pd.read_csv(folder / "outcomes.csv.gz") for folder in (stored, fresh))
        print(
            f"{int(compare.same_rows(before, after).sum())} of {len(before)} rows are the stored ones."
            if before.shape == after.shape
            else f"{len(after)} rows; stored are {len(before)}."
        )
    if accept:
        replace_folder(fresh, stored)
        print(f"results/{plan.name}/{name} now holds these tables.")
        if _stored_plan(stored.parent) not in (None, _stored_plan(stored)):
            print(f"The main tables of results/{plan.name} are of another plan: measure them again, too.")
    else:
        print(f"Tables: {fresh}.{_to_store(plan)}")


def _to_store(plan: Preset) -> str:
    """What to do with fresh tables; those of the tiny preset are never stored."""
    return (
        ""
        if plan.name == "tiny"
        else f" To put them in the place of the stored ones in results/{plan.name}, run again with --accept."
    )


def main(
    preset_name: Annotated[str, tyro.conf.arg(name="preset")] = "cpu",
    into: Path | None = None,
    accept: bool = False,
    dry_run: bool = False,
    renew_stamp: Annotated[bool, tyro.conf.arg(name="renew")] = False,
    part: str | None = None,
    against: Path | None = None,
    seeds: int | None = None,
) -> None:
    """Measure a preset's study (or a group's, one after another), resuming after an interruption, and compare it with the
    stored results.

    Parameters
    ----------
    preset_name
        The study plan, or a group of them.
    into
        Folder for finished units (for a group: of one folder a preset); runs/PRESET by default (not tracked).
    accept
        Put the new tables in the place of results/PRESET.
    dry_run
        Print the plan and stop.
    renew_stamp
        Measure one unit a stage again and, if nothing differs, give the stored results the new code's stamp.
    part
        Measure a part beyond the main plan instead: transfer, xstest, forced, along, ablations, chain, longer or rated.
    against
        With --renew, on a machine that rounds otherwise than that of the stored results: a folder into which the code before
        the change has measured the same units here. The new code's rows are compared with those.
    seeds
        Only the plan's first so many seeds: sooner done, and compared within bands that are wider for it.
    """
    if preset_name in GROUPS:
        for name in GROUPS[preset_name]:
            main(name, into and into / name, accept, dry_run, renew_stamp, part, against, seeds)
            gc.collect()  # one study's models leave the device before the next one's come
        return
    plan = preset(preset_name)
    process, processes = models.process()
    if processes > 1 and (part is not None or renew_stamp):
        raise ValueError(
            "--part and --renew are work for one process: start them with python, not with accelerate launch"
        )
    if against is not None and (not renew_stamp or part is not None):
        raise ValueError("--against belongs to --renew of the main study")
    if seeds is not None and (accept or renew_stamp or part is not None):
        raise ValueError("--seeds belongs to a fresh main study: not with --accept, --renew or --part")
    if seeds is not None:
        if not 1 <= seeds <= len(plan.seeds):
            raise ValueError(f"--seeds takes 1 to {len(plan.seeds)} for preset {plan.name}, got {seeds}")
        plan = replace(plan, seeds=plan.seeds[:seeds])
    if accept and plan.name == "tiny":
        raise ValueError("the tiny preset's model has random weights; its tables are never results")
    print(describe(plan))
    into = into or ROOT / "runs" / plan.name
    if part is not None and renew_stamp and not dry_run:
        renew_part(plan, part, into)
        return
    if part is not None:
        measure_part(plan, part, into, accept, dry_run)
        return
    if dry_run:
        return
    if renew_stamp:
        renew(plan, into, against)
        return
    stored = ROOT / "results" / plan.name
    study = Study(plan, into, per_set=6 if plan.name == "tiny" else None)
    with study.store.held(together=processes > 1):
        study.run(process=process, processes=processes)
        if process:  # the first writes the tables
            return
        fresh = study.store.root / ("tables" if seeds is None else f"tables-of-{seeds}")
        study.write_tables(fresh)
    if (stored / "manifest.json").is_file():
        print(compare.report(fresh, stored))
    print(diagnostics.report(results.Results(fresh)))
    if accept:
        replace_folder(fresh, stored, keep=KEPT)
        print(f"results/{plan.name} now holds these tables.")
        now = _stored_plan(stored)
        if stale := [name for name in parts.MODULES if _stored_plan(stored / name) not in (None, now)]:
            print(f"Of another plan, and refused until they are measured again: {', '.join(stale)}.")
    else:
        print(f"Tables: {fresh}.{_to_store(plan) if seeds is None else ''}")


if __name__ == "__main__":
    with command.told("study"):
        tyro.cli(
            main, prog="python -m safetylib.study.run", description=f"presets: {', '.join(sorted({*PRESETS, *GROUPS}))}"
        )
