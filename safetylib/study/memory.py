"""How much device memory (and arithmetic) a study needs, before anything is loaded.

An estimate from shapes alone, phase by phase; the largest phase counts. Transient tensors are counted as if all were alive
at once, and a fifth is added. It has not been compared with a GPU; on a CPU, a process may hold on to more than it uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from safetylib.study import generate
from safetylib.study.presets import Measurement, Preset, Recipe
from safetylib.study.registry import MODELS, Shape

# An NF4 weight, with its share of the doubly quantised scales: 4 bits, 8 per 64 weights, 32 per 64 * 256.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Tokens assumed for a prompt in its template, and for a refusal.
PROMPT, REFUSAL = 96, 40
_MARGIN = 1.2
_FLOAT32 = 4


@dataclass(frozen=True)
class Estimate:
    """Bytes needed at the peak of each phase, and whether training recomputes activations instead of keeping them."""

    phases: dict[str, int]
    recompute: bool

    @property
    def peak(self) -> int:
        """Bytes needed."""
        return max(self.phases.values())


def weights(shape: Shape, packed: bool, width: int) -> float:
    """Bytes of a loaded model: linear layers in 4 bits (``packed``) or unpacked, embeddings always unpacked."""
    return shape.linear * (NF4_BYTES if packed else width) + shape.embedding * width


def prepacked(shape: Shape, width: int) -> float:
    """Bytes of a CPU's prepacked linear layers, the output layer among them also where it shares the embedding."""
    return (shape.linear + shape.vocabulary * shape.hidden) * width


def training_tokens(recipe: Recipe) -> int:
    """Tokens of one step's batch, with prompts and refusals of the assumed length."""
    harmful = recipe.harmful_per_step * (PROMPT + max(*recipe.orbit, recipe.deep_position) + REFUSAL)
    return harmful + recipe.benign_per_step * (PROMPT + recipe.anchor_tokens)


def training(shape: Shape, recipe: Recipe, width: int, recompute: bool) -> float:
    """Bytes that a training step needs besides the model.

    Adapters with their gradients, masters with theirs, and Adam's two moments, all in float32; the activations that the
    backward pass reads (norms and adapters' inputs in float32, attention weights, feed-forward inputs), or one layer's at a
    time and every layer's input if they are computed again; the logits of target tokens with their float32 losses and gradients.
    """
    adapters = shape.adapters(recipe.lora.rank) * 6 * _FLOAT32
    tokens = training_tokens(recipe)
    longest = PROMPT + max(*recipe.orbit, recipe.deep_position, recipe.anchor_tokens) + REFUSAL
    attention = (3 * shape.heads + 2 * shape.key_heads) * shape.head_size + 3 * shape.heads * longest
    layer = tokens * (14 * shape.hidden + attention + 6 * shape.feed_forward) * width
    inputs = shape.layers * tokens * shape.hidden * width
    activations = inputs + 2 * layer if recompute else (shape.layers + 1) * layer
    targets = recipe.harmful_per_step * REFUSAL + recipe.benign_per_step * recipe.anchor_tokens
    logits = targets * shape.vocabulary * (2 * width + 3 * _FLOAT32)
    return adapters + activations + logits


def fits(shape: Shape, recipe: Recipe, width: int, room: float) -> bool:
    """Whether a training step that keeps its activations fits into what a loaded model leaves free."""
    return training(shape, recipe, width, recompute=False) * _MARGIN <= room


def free(on: torch.device) -> float:
    """Bytes that a device has free; infinity where it does not say."""
    if on.type == "cuda":
        held_in_reserve = torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)
        return float(torch.cuda.mem_get_info(on)[0] + held_in_reserve)
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def reading(shape: Shape, width: int, logits: int, tokens: int) -> float:
    """Bytes of one packed forward pass: keys and values, a layer's activations, and the logits asked for in float32."""
    layer = tokens * (6 * shape.hidden + 3 * shape.feed_forward + shape.heads * 2 * PROMPT) * width
    return tokens * shape.keys_and_values * width + layer + logits * shape.vocabulary * (width + _FLOAT32)


def decoding(shape: Shape, measurement: Measurement, width: int) -> float:
    """Bytes of the branches that are decoded together: keys and values of a batch, and of one that goes on beside it."""
    capacity = PROMPT + max(measurement.depths) + measurement.within + measurement.after
    return 2 * generate.most_rows(shape) * capacity * shape.keys_and_values * width


def estimate(
    model: Shape, judge: Shape | None, recipe: Recipe, measurement: Measurement, packed: bool, width: int, room: float
) -> Estimate:
    """What a study needs at its peak.

    Parameters
    ----------
    model, judge
        Shapes of the target and of the judge; None if the target judges itself.
    packed
        Weights stay in 4 bits on the device (a GPU); otherwise they are unpacked (a CPU).
    width
        Bytes of a number in the compute dtype.
    room
        Bytes that the device has free: on a GPU, activations are recomputed if training would not fit otherwise.
    """
    # Both models stay on the device from the first judging on; on a CPU the untuned model a second time, prepacked.
    again = 0 if packed else prepacked(model, width)
    base = weights(model, packed, width) + again + (weights(judge, packed, width) if judge else 0)
    rating = judge or model
    tokens = generate.most_tokens(model)
    recompute = packed and not fits(model, recipe, width, room - base * _MARGIN)
    phases = {
        "training": base + training(model, recipe, width, recompute),
        # A member is measured as an unpacked copy with its adapter merged, beside the base model.
        "generation": base
        + weights(model, False, width)
        + again
        + max(
            reading(model, width, tokens, tokens),
            reading(model, width, 0, tokens) + decoding(model, measurement, width),
        ),
        "judging": base + reading(rating, width, generate.most_rows(rating), generate.READ_TOKENS),
    }
    return Estimate({name: int(needed * _MARGIN) for name, needed in phases.items()}, recompute)


def of_preset(plan: Preset, room: float, packed: bool = True, width: int = 2) -> Estimate | None:
    """The estimate of a preset whose models are known by name; None where one is not (a folder, a made-up model)."""
    if plan.model not in MODELS or plan.judge not in MODELS:
        return None
    judge = None if plan.judge == plan.model else MODELS[plan.judge].shape
    return estimate(MODELS[plan.model].shape, judge, plan.recipe, plan.measurement, packed, width, room)


def operations(plan: Preset) -> float:
    """Floating-point operations of a study whose models are known by name; an order of magnitude.

    Two a weight and token read or written, two more where gradients pass through.
    """
    model, judge = (MODELS[name].shape for name in (plan.model, plan.judge))
    size, judge_size = (shape.linear + shape.vocabulary * shape.hidden for shape in (model, judge))
    measurement, members, harmful = plan.measurement, len(plan.members()), sum(plan.split[1:])
    trained = (members - 1) * plan.recipe.steps * training_tokens(plan.recipe)
    read = members * harmful * (PROMPT + max(measurement.depths) + measurement.within)
    written = members * harmful * len(measurement.depths) * (measurement.within + measurement.after)
    rated = members * harmful * len(measurement.judged_depths) * (2 * PROMPT + measurement.within + measurement.after)
    return size * (4 * trained + 2 * (read + written)) + 2 * judge_size * rated


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB"
