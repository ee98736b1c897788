"""Out of distribution: every member on HarmBench's standard behaviours, which trained and selected nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from safetylib.study import detectors, generate, prompt_sets
from safetylib.study.part import Part
from safetylib.study.prompts import Prompt, stratified_split
from safetylib.study.store import digest

PROMPTS = 75


class Transfer(Part):
    """Refusal at depth 0 and the headline depths."""

    part = "transfer"
    code = ("part.py", "transfer.py")
    renewed = "transfer-base-0"

    @property
    def stamp(self) -> str:
        return digest(super().stamp, [(prompt.id, prompt.text) for prompt in self.behaviours])

    def own(self) -> dict[str, tuple]:
        measurement = asdict(self.plan.measurement)
        result: dict[str, tuple] = {"trunks": ("answers", measurement)}
        for arm, seed in self.plan.members():
            needs = ("trunks",) if arm == "base" else ("trunks", f"train-{arm}-{seed}")
            result[f"transfer-{arm}-{seed}"] = (*needs, measurement, arm, seed)
        return result

    @cached_property
    def behaviours(self) -> list[Prompt]:
        """HarmBench's prompts, drawn in proportion to their categories, or a slice of them."""
        everything = prompt_sets.harmbench()
        drawn = stratified_split([one.id for one in everything], [one.category for one in everything], (0, 0, PROMPTS))
        return [prompt for prompt in everything if prompt.id in drawn][: self.per_set]

    @property
    def asked(self) -> list[Prompt]:
        return [*self.prompts, *self.behaviours]

    def _trunks(self, folder: Path) -> None:
        length = max(self.plan.measurement.headline) + self.plan.measurement.within
        questions = [self.ids[prompt.id] for prompt in self.behaviours]
        found = generate.answer(self.untuned, questions, length, self.tokenizer.eos_token_id)
        closing = [self.tokenizer.eos_token_id]
        trunks = {
            prompt.id: response.tokens + closing * response.ended
            for prompt, response in zip(self.behaviours, found, strict=True)
        }
        (folder / "trunks.json").write_text(json.dumps(trunks))

    def _transfer(self, folder: Path, arm: str, seed: int) -> None:
        trunks = json.loads((self.unit("trunks") / "trunks.json").read_text())
        deepest = max(self.plan.measurement.headline)
        usable = [
            prompt
            for prompt in self.behaviours
            if len(trunks[prompt.id]) > deepest + 1 and not detectors.MAIN(self.text(trunks[prompt.id]))
        ]
        rows = self.observed(self.tuned(arm, seed), (0, *self.plan.measurement.headline), usable, trunks)
        self.write_rows(folder, rows, arm=arm, seed=seed)
