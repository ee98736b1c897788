"""Transition probabilities by teacher forcing beside refusals by generation, for the main study's members."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetylib.study import augment, prompts, transitions
from safetylib.study.part import Part
from safetylib.study.units import Study


def refusal_openings(study: Study) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """How the known refusal wordings of both splits begin, at the start of a response and after a harmful prefix."""
    texts = [text for split in ("train", "validation") for text in prompts.refusals(split)]
    separator = study.tokenizer(augment.SEPARATOR + "I", add_special_tokens=False)["input_ids"]

    def encoded(text: str) -> list[int]:
        return study.tokenizer(text, add_special_tokens=False)["input_ids"]

    start = transitions.openings([encoded(text) for text in texts], 0)
    later = transitions.openings([encoded(augment.SEPARATOR + text) for text in texts], len(separator) - 1, words=1)
    return start, later


class Forced(Part):
    """Of every member: q_k, and the probability that a refusal starts within m tokens, at every depth."""

    part = "forced"
    code = ("part.py", "forced.py", "transitions.py")
    renewed = "forced-base-0"

    def own(self) -> dict[str, tuple]:
        measurement = asdict(self.plan.measurement)
        result: dict[str, tuple] = {}
        for arm, seed in self.plan.members():
            needs = ("answers",) if arm == "base" else ("answers", f"train-{arm}-{seed}")
            result[f"forced-{arm}-{seed}"] = (*needs, measurement)
        return result

    def _forced(self, folder: Path, arm: str, seed: int) -> None:
        measurement = self.plan.measurement
        group = self.chosen("harmful", "test")
        deepest = max(measurement.depths) + measurement.within
        trunks = [self.answers[prompt.id][: deepest - 1] for prompt in group]
        found, missed = transitions.starting_probabilities(
            self.tuned(arm, seed), [self.ids[prompt.id] for prompt in group], trunks, *refusal_openings(self)
        )
        rows = [
            {
                "prompt": prompt.id,
                "depth": depth,
                "immediate": chances[depth],
                "within": transitions.within(chances, depth, measurement.within),
                "missed": missed,
            }
            for prompt, chances in zip(group, found, strict=True)
            for depth in measurement.depths
            if depth < len(chances)
        ]
        self.write_rows(folder, rows, arm=arm, seed=seed)
