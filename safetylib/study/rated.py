"""The judge's ratings of the answers to benign prompts: what a vote that averages ratings refuses there.

The main plan rates responses to harmful prompts alone. A rule that refuses by the members' mean rating (``average`` in
:mod:`safetylib.study.votes`) also has an over-refusal, and that can be known only if benign answers are rated, too.
"""

from __future__ import annotations

import json
from pathlib import Path

from tqdm.auto import tqdm

from safetylib.study import judge
from safetylib.study.part import Part


class Rated(Part):
    """Every member's answers to the benign test prompts, as they were generated, rated by the plan's judge."""

    part = "rated"
    code = ("part.py", "rated.py")
    renewed = "rate-base-0"

    def own(self) -> dict[str, tuple]:
        result: dict[str, tuple] = {}
        for arm, seed in self.plan.members():
            adapter = () if arm == "base" else (f"train-{arm}-{seed}",)
            needs = ("answers", *adapter, f"generate-{arm}-{seed}")
            result[f"rate-{arm}-{seed}"] = (*needs, self.stages["judging"], self.identities[1])
        return result

    def _rate(self, folder: Path, arm: str, seed: int) -> None:
        text = {prompt.id: prompt.text for prompt in self.prompts}
        responses = json.loads((self.unit(f"generate-{arm}-{seed}") / "responses.json").read_text())
        benign = [row for row in responses if row["kind"] != "harmful"]
        pairs = [(text[row["prompt"]], self.text(row["tokens"])) for row in benign]
        with tqdm(total=len(pairs), desc=f"rate {arm} {seed}", disable=self.silent, leave=False) as bar:
            ratings = judge.rate(*self._judge_model, pairs, bar.update)
        rows = [
            {"kind": row["kind"], "prompt": row["prompt"], "safety": rating.safety}
            for row, rating in zip(benign, ratings, strict=True)
        ]
        self.write_rows(folder, rows, arm=arm, seed=seed)
