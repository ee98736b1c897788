"""Where the refusal goes: the arms of the study, and the batches they train on.

An arm is a rule that places the refusal k tokens into a harmful answer. Everything else is drawn from streams that all
arms share: the same prompts, wordings and benign anchors at the same steps.

=========  =======================================================================================================
arm        position of the refusal, in response tokens
=========  =======================================================================================================
shallow    0
deep       one fixed position
random     0 with probability 1/2, else uniform on 1 ... the deepest position of the orbit (after Qi et al. 2025)
uniform    a position of the orbit, drawn independently for every example
cyclic     the orbit's positions in turn: at step t all examples stand at orbit[t mod n], one step of Z_n per update
=========  =======================================================================================================

The group acts on the position alone: the harmful prefix keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from safetylib.study.presets import Recipe

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Example:
    """What is trained on: ``context`` is read, ``target`` carries the loss (token ids); ``kind`` is refusal or anchor.

    ``position`` is where in the answer the target starts.
    """

    context: list[int]
    target: list[int]
    kind: str
    position: int = 0


@dataclass(frozen=True)
class Material:
    """What batches are made of, as token ids.

    Attributes
    ----------
    harmful
        (prompt, the untuned model's answer) pairs; answers at least as long as the deepest position.
    refusals
        (at position 0, after a harmful prefix) forms of each wording, closed by the end-of-sequence token.
    plain, borderline
        (prompt, the untuned model's answer) pairs of benign anchors.
    """

    harmful: list[tuple[list[int], list[int]]]
    refusals: list[tuple[list[int], list[int]]]
    plain: list[tuple[list[int], list[int]]]
    borderline: list[tuple[list[int], list[int]]]


def positions(arm: str, recipe: Recipe, step: int, count: int, generator: np.random.Generator) -> list[int]:
    """Refusal positions of one step's harmful examples under an arm.

    Raises
    ------
    ValueError
        Unknown arm.
    """
    orbit, deepest = recipe.orbit, max(recipe.orbit)
    match arm:
        case "shallow":
            return [0] * count
        case "deep":
            return [recipe.deep_position] * count
        case "random":
            return [0 if generator.random() < 0.5 else int(generator.integers(1, deepest + 1)) for _ in range(count)]
        case "uniform":
            return [int(position) for position in generator.choice(orbit, count)]
        case "cyclic":
            return [orbit[step % len(orbit)]] * count
    raise ValueError(f"no arm {arm!r} places refusals; known: shallow, deep, random, uniform, cyclic")


def _endless(count: int, generator: np.random.Generator) -> Iterator[int]:
    """Indices below ``count`` in shuffled passes."""
    while True:
        yield from generator.permutation(count).tolist()


def batches(arm: str, recipe: Recipe, material: Material, seed: int) -> Iterator[list[Example]]:
    """The training batches of one run, ``recipe.steps`` of them.

    Prompts, wordings and anchors depend on the seed only; positions on the seed and the arm.

    Raises
    ------
    ValueError
        A pool that the recipe draws from is empty; names it.
    """
    needed = {"harmful": recipe.harmful_per_step, "refusals": recipe.harmful_per_step}
    needed |= {"plain": -(-recipe.benign_per_step // 2), "borderline": recipe.benign_per_step // 2}
    for pool, examples in needed.items():
        if examples and not getattr(material, pool):
            raise ValueError(
                f"there is nothing to draw {pool} examples from: no prompt of the training split can serve (the manifest's "
                "left_out says why harmful ones cannot)"
            )
    streams = np.random.default_rng(seed).spawn(5)
    prompts, wordings, plain, borderline = (
        _endless(len(pool), stream)
        for pool, stream in zip(
            (material.harmful, material.refusals, material.plain, material.borderline), streams, strict=False
        )
    )
    for step in range(recipe.steps):
        batch = []
        for position in positions(arm, recipe, step, recipe.harmful_per_step, streams[4]):
            prompt, answer = material.harmful[next(prompts)]
            refusal = material.refusals[next(wordings)][position > 0]
            batch.append(Example(prompt + answer[:position], refusal, "refusal", position))
        for slot in range(recipe.benign_per_step):
            pool, stream = (material.plain, plain) if slot % 2 == 0 else (material.borderline, borderline)
            prompt, answer = pool[next(stream)]
            batch.append(Example(prompt, answer[: recipe.anchor_tokens], "anchor"))
        yield batch


def token_counts(batch: Sequence[Example]) -> dict[str, int]:
    """Tokens with a loss on them, by kind, and tokens of context, in one batch."""
    return {
        "refusal_tokens": sum(len(example.target) for example in batch if example.kind == "refusal"),
        "anchor_tokens": sum(len(example.target) for example in batch if example.kind == "anchor"),
        "context_tokens": sum(len(example.context) for example in batch),
    }
