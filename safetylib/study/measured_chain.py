"""The measured chain: transition probabilities of the real model along training, for several alpha, gamma and optimisers.

Every run trains on the uniform arm's batches (its bias is the same at every step, in expectation), with three seeds, and is
looked at on validation prompts at checkpoints:

============  ============================================================================================================
quantity      what is measured
============  ============================================================================================================
``start``     Q_t(H_k, R), one step of it: the probability that a refusal starts right after k tokens (teacher forcing)
``stop``      of a complete refusal (a wording that was never trained on), the probability that the response ends there
``turn``      of a refusal whose first words were forced, the share that turns to compliance (by generation)
============  ============================================================================================================

The step sizes of plain gradient descent were set after a probe of seven steps, whose training loss fell at 0.3 and diverged at 3; a
run at 1 with the slower decay was not finite after twelve steps, and 0.125 took the place of 1. Seeds 1 and 2 were added after
seed 0 had been looked at, with nothing else changed; and 0.0625 after three of the six runs of gradient descent had blown up
with some seed, so that three step sizes can be compared that do not. Nothing else of these runs was chosen after looking at them.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from safetylib.study import augment, detectors, generate, models, prompts, train, transitions
from safetylib.study.along import checkpoints, saving
from safetylib.study.forced import refusal_openings
from safetylib.study.part import Part

ARM = "uniform"
SEEDS = 3  #: so many of the plan's first seeds
STEPS, ANCHORS = 16, 6  #: half the recipe's benign examples a step: the refusals' share of a step is what is followed
PROMPTS, WORDINGS, FORCED_TOKENS = 16, 4, 3
LEARNING_RATE = 6e-3  #: of the recipe that the step sizes belong to; a plan with another one has them in proportion
OPTIMISERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Run:
    """One training run: optimiser, step size alpha, decay gamma."""

    optimiser: str
    alpha: float
    gamma: float


RUNS = {
    f"{optimiser}{place}": Run(optimiser, alpha, gamma)
    for optimiser, alphas in (("adamw", (1.5e-3, 3e-3, 6e-3)), ("sgd", (0.25, 0.5, 0.125, 0.0625)))
    for place, (alpha, gamma) in enumerate((alpha, gamma) for alpha in alphas for gamma in (0.85, 0.96))
}


class MeasuredChain(Part):
    """Two decays with three step sizes of AdamW, and with four of plain stochastic gradient descent."""

    part = "chain"
    code: tuple[str, ...] = ("part.py", "measured_chain.py", "forced.py", "along.py", "transitions.py")
    renewed = "chain-adamw0-0"
    keys = ("run", "seed")
    runs, steps, looked_at = RUNS, STEPS, checkpoints(STEPS)[1:]

    def own(self) -> dict[str, tuple]:
        recipe, common = asdict(self.plan.recipe), (PROMPTS, WORDINGS, FORCED_TOKENS, ARM)
        result: dict[str, tuple] = {"untrained": ("answers", *common)}
        for seed in self.plan.seeds[:SEEDS]:
            for name, run in self.runs.items():
                needs = ("answers", self.stages["training"], recipe, self.steps, ANCHORS, asdict(run), *common, seed)
                result[f"{self.part}-{name}-{seed}"] = needs
        return result

    def _untrained(self, folder: Path) -> None:
        self.write_rows(folder, self._read(self.untuned), run="untrained", seed=0, step=0)

    def _chain(self, folder: Path, name: str, seed: int) -> None:
        run, at, recipe = self.runs[name], self.looked_at, self.plan.recipe
        alpha = run.alpha * (recipe.learning_rate / LEARNING_RATE)
        recipe = replace(recipe, steps=self.steps, benign_per_step=ANCHORS, learning_rate=alpha, decay=run.gamma)
        model = models.with_adapters(self.base, recipe.lora, seed)
        try:
            batches = saving(augment.batches(ARM, recipe, self.material, seed), model, at, folder)
            optimiser = OPTIMISERS[run.optimiser]
            records = train.train(model, batches, recipe, f"train {name} {seed}", self.silent, optimiser)
        finally:
            models.remove_adapters(model)
        self.write_rows(folder, train.as_rows(records), "training.csv", run=name, seed=seed)
        rows = []
        for step in at:
            adapter = folder / f"step-{step}"
            rows += [{"step": step, **row} for row in self._read(models.merged(self.base, adapter))]
            shutil.rmtree(adapter)
        self.write_rows(folder, rows, run=name, seed=seed)

    def _read(self, model: PreTrainedModel) -> list[dict]:
        """The three quantities of one model: rows of quantity, prompt, depth, value."""
        group = prompts.stratified_sample(self.chosen("harmful", "validation"), PROMPTS)
        eos = self.tokenizer.eos_token_id
        questions = [self.ids[prompt.id] for prompt in group]
        depths = (0, *self.plan.measurement.headline)
        trunks = [self.answers[prompt.id][: max(depths)] for prompt in group]
        starts, _ = transitions.starting_probabilities(
            model, questions, trunks, *refusal_openings(self), least=1e-3, positions=depths
        )
        rows = [
            {"quantity": "start", "prompt": prompt.id, "depth": depth, "value": float(chances[depth])}
            for prompt, chances in zip(group, starts, strict=True)
            for depth in depths
        ]

        def encoded(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        wordings = [encoded(text) for text in prompts.refusals("validation")[:WORDINGS]]
        complete = [question + wording for question in questions for wording in wordings]
        stops = transitions.stopping_probabilities(model, complete, eos).reshape(len(group), WORDINGS).mean(axis=1)
        rows += [
            {"quantity": "stop", "prompt": prompt.id, "depth": 0, "value": float(value)}
            for prompt, value in zip(group, stops, strict=True)
        ]
        begun = wordings[0][:FORCED_TOKENS]
        answers = generate.answer(model, [question + begun for question in questions], self.plan.measurement.after, eos)
        for prompt, answer in zip(group, answers, strict=True):
            turned = detectors.complied_after(self.text(begun + answer.tokens))
            rows.append({"quantity": "turn", "prompt": prompt.id, "depth": 0, "value": float(turned)})
        return rows
