"""Ablations of the cyclic arm, each differing from it in one thing, at an equal budget of steps, examples and tokens.

=============  ===========================================================================================================
variant        what differs
=============  ===========================================================================================================
orbit2         two positions, 0 and the deepest, instead of four
orbit8         eight positions in the same range, with the same mean
rotate         the paper's Figure 1 read literally: phrases are rotated. The response is cut into the refusal and the phrases
               between the orbit's positions; step t applies the t-th power of the cyclic shift to the whole row, so that the
               refusal stands where the cyclic arm puts it, but the phrases before it are those that wrapped around
disjoint0-2    a third of the training prompts each, no prompt shared: members of an ensemble that differ in their data; a
               team of three for each of the first seeds
=============  ===========================================================================================================

Orbits are symmetric about the middle of the range, so one round through any of them reads the same mean number of harmful
tokens; :func:`equal_budgets` asserts it, and that every orbit's length divides the number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from safetylib.study import augment, models, train
from safetylib.study.part import Part
from safetylib.study.presets import Recipe

VARIANTS = ("orbit2", "orbit8", "rotate", "disjoint0", "disjoint1", "disjoint2")
_FOLDS = 3
TEAMS = 3  #: so many of the plan's first seeds have members on disjoint data


def orbit(size: int, deepest: int) -> tuple[int, ...]:
    """``size`` positions from 0 to the deepest, equally far apart up to rounding, symmetric about the middle.

    Raises
    ------
    ValueError
        Fewer than two positions.
    """
    if size < 2:
        raise ValueError(f"an orbit through 0 and {deepest} has at least two positions, not {size}")
    half = [round(deepest * place / (size - 1)) for place in range((size + 1) // 2)]
    return tuple(half + [deepest - position for position in reversed(half[: size // 2])])


def equal_budgets(recipe: Recipe, other: Recipe) -> None:
    """Assert that two recipes' cyclic arms read equally many harmful tokens in equally many steps.

    Raises
    ------
    ValueError
        They do not, or an orbit is not walked through a whole number of times.
    """
    for one in (recipe, other):
        if one.steps % len(one.orbit):
            raise ValueError(
                f"{one.steps} steps do not go through an orbit of {len(one.orbit)} a whole number of times"
            )
    first, second = (sum(one.orbit) * (one.steps // len(one.orbit)) for one in (recipe, other))
    if (recipe.steps, first) != (other.steps, second):
        raise ValueError(
            f"unequal budgets: {first} harmful tokens an example in {recipe.steps} steps, {second} in {other.steps}"
        )


def rotated(phrases: list[list[int]], power: int) -> list[list[int]]:
    """A row of phrases after ``power`` applications of the cyclic shift, each moving every phrase one place on."""
    shift = power % len(phrases)
    return phrases[-shift:] + phrases[:-shift] if shift else list(phrases)


def rotate_batches(recipe: Recipe, material: augment.Material, seed: int) -> Iterator[list[augment.Example]]:
    """The cyclic arm's batches with the context replaced by what the shift of phrases leaves before the refusal.

    The orbit must be equally spaced: its gaps cut the answer into phrases of one length.

    Raises
    ------
    ValueError
        Unequally spaced orbit: rotated phrases would move the refusal off the orbit. An answer shorter than the orbit.
    """
    gaps = set(np.diff(recipe.orbit).tolist())
    if len(gaps) != 1 or recipe.orbit[0] != 0:
        raise ValueError(f"phrases can be rotated only along an equally spaced orbit from 0, not {recipe.orbit}")
    length, order = gaps.pop(), len(recipe.orbit)
    whole = replace(recipe, orbit=(max(recipe.orbit),) * order)  # every answer read to the deepest position
    for step, (batch, full) in enumerate(
        zip(
            augment.batches("cyclic", recipe, material, seed),
            augment.batches("cyclic", whole, material, seed),
            strict=True,
        )
    ):
        result = []
        for example, long in zip(batch, full, strict=True):
            if example.kind == "refusal":
                prompt = len(example.context) - example.position
                answer = long.context[prompt:]
                if len(answer) != max(recipe.orbit):
                    raise ValueError(f"an answer of {len(answer)} tokens is shorter than the orbit {recipe.orbit}")
                phrases = [answer[first : first + length] for first in range(0, len(answer), length)]
                row = rotated([[], *phrases], step)
                before = row[: row.index([])]
                context = example.context[:prompt] + [token for phrase in before for token in phrase]
                example = replace(example, context=context)
            result.append(example)
        yield result


def _own_seed(variant: str, seed: int) -> int:
    """The seed of a member's batches and adapters: members on disjoint data differ in it too, as any two members do."""
    return _FOLDS * seed + int(variant.removeprefix("disjoint")) if variant.startswith("disjoint") else seed


class Ablations(Part):
    """Trained and measured without a judge, at depth 0 and the headline depths, and on benign prompts."""

    part = "ablations"
    code = ("part.py", "ablations.py")
    renewed = "observe-orbit2-0"

    def own(self) -> dict[str, tuple]:
        recipe, stages = asdict(self.plan.recipe), self.stages
        members = [
            (variant, seed)
            for seed in self.plan.seeds
            for variant in VARIANTS
            if seed in self.plan.seeds[:TEAMS] or not variant.startswith("disjoint")
        ]
        result: dict[str, tuple] = {}
        for variant, seed in members:
            result[f"ablate-{variant}-{seed}"] = ("answers", stages["training"], recipe, variant, seed)
            result[f"observe-{variant}-{seed}"] = (f"ablate-{variant}-{seed}", asdict(self.plan.measurement))
        return result

    def batches(self, variant: str, seed: int) -> Iterator[list[augment.Example]]:
        """Training batches of a variant."""
        recipe, material = self.plan.recipe, self.material
        if variant == "rotate":
            return rotate_batches(recipe, material, seed)
        if variant.startswith("orbit"):
            changed = replace(recipe, orbit=orbit(int(variant[5:]), max(recipe.orbit)))
            equal_budgets(recipe, changed)
            return augment.batches("cyclic", changed, material, seed)
        fold = int(variant.removeprefix("disjoint"))
        own = replace(material, harmful=material.harmful[fold::_FOLDS])
        return augment.batches("cyclic", recipe, own, _own_seed(variant, seed))

    def _ablate(self, folder: Path, variant: str, seed: int) -> None:
        model = models.with_adapters(self.base, self.plan.recipe.lora, _own_seed(variant, seed))
        try:
            batches = self.batches(variant, seed)
            records = train.train(model, batches, self.plan.recipe, f"train {variant} {seed}", silent=self.silent)
            model.save_pretrained(folder / "adapter", safe_serialization=True)
        finally:
            models.remove_adapters(model)
        self.write_rows(folder, train.as_rows(records), "training.csv", arm=variant, seed=seed)

    def _observe(self, folder: Path, variant: str, seed: int) -> None:
        model = models.merged(self.base, self.unit(f"ablate-{variant}-{seed}") / "adapter")
        rows = self.observed(model, (0, *self.plan.measurement.headline), self.chosen("harmful", "test"), self.answers)
        rows += self.observed_benign(model)
        self.write_rows(folder, rows, arm=variant, seed=seed)
