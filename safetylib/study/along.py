"""Refusal by depth along training: the same runs as the main study's, stopped at checkpoints.

Which step first reaches 90 % refusal, per arm and depth, is read off these rows. Prompts are the validation ones, so that
nothing here looks at the test split.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel

from safetylib.study import augment, models, train
from safetylib.study.part import Part

SEEDS = 5  #: so many of the plan's first seeds


def checkpoints(steps: int) -> tuple[int, ...]:
    """Steps at which a run is looked at: 0, powers of two, and the last."""
    powers = [2**k for k in range(steps.bit_length()) if 2**k < steps]
    return (0, *powers, steps)


def saving(batches: Iterable[list], model: PeftModel, at: tuple[int, ...], folder: Path) -> Iterator[list]:
    """Pass batches on; before batch t, and after the last, save the adapters if t is a checkpoint."""
    step = 0
    for batch in batches:
        if step in at:
            model.save_pretrained(folder / f"step-{step}", safe_serialization=True)
        yield batch
        step += 1
    if step in at:
        model.save_pretrained(folder / f"step-{step}", safe_serialization=True)


class Along(Part):
    """Every trained arm, seen at checkpoints."""

    part = "along"
    code = ("part.py", "along.py")
    renewed = "along-shallow-0"

    def own(self) -> dict[str, tuple]:
        recipe, measurement = asdict(self.plan.recipe), asdict(self.plan.measurement)
        arms = [arm for arm in self.plan.arms if arm != "base"]
        return {
            f"along-{arm}-{seed}": ("answers", self.stages["training"], recipe, measurement, arm, seed)
            for seed in self.plan.seeds[:SEEDS]
            for arm in arms
        }

    def _along(self, folder: Path, arm: str, seed: int) -> None:
        recipe, at = self.plan.recipe, checkpoints(self.plan.recipe.steps)
        model = models.with_adapters(self.base, recipe.lora, seed)
        try:
            batches = saving(augment.batches(arm, recipe, self.material, seed), model, at, folder)
            train.train(model, batches, recipe, f"train {arm} {seed}", silent=self.silent)
        finally:
            models.remove_adapters(model)
        rows, group = [], self.chosen("harmful", "validation")
        depths = (0, *self.plan.measurement.headline)
        for step in at:
            adapter = folder / f"step-{step}"
            found = self.observed(models.merged(self.base, adapter), depths, group, self.answers)
            rows += [{"step": step, **row} for row in found]
            shutil.rmtree(adapter)
        self.write_rows(folder, rows, arm=arm, seed=seed)
