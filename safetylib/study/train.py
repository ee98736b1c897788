r"""Fine-tuning: adapters on a 4-bit model, loss on the refusal and on the anchors, step size alpha * gamma**t.

The objective of a step is

.. math:: L_t = \frac{1}{|R_t|}\sum_{i \in R_t} -\log p(y_i) + w \, \frac{1}{|A_t|}\sum_{i \in A_t} -\log p(y_i),

with R_t the tokens of the step's refusals, A_t those of its benign anchors and w the anchors' weight. Nothing is learnt
on prompts or on harmful prefixes. The optimiser holds float32 masters of the adapters; the model computes with copies in
its own dtype, refreshed after every step, so that late, small updates are not lost to rounding. In float16 the loss is
scaled so that small gradients are not lost either; where it was scaled too far, the same step is done again with half the
scale, and none is skipped.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel
from tqdm.auto import tqdm

from safetylib.study import memory
from safetylib.study.attention import pack
from safetylib.study.augment import Example, token_counts
from safetylib.study.presets import Recipe
from safetylib.study.registry import Shape

_FIRST_SCALE = 2.0**14


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step: its step size, its two mean losses (nats per token), and the tokens it saw."""

    step: int
    step_size: float
    refusal_loss: float
    anchor_loss: float
    refusal_tokens: int
    anchor_tokens: int
    context_tokens: int


def target_losses(model: PeftModel, batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the refusals' tokens, and over the anchors' (nats per token).

    Only positions that predict a target token reach the output layer: it is the largest matrix of a small model.
    """
    packed = pack([example.context + example.target for example in batch], model.device)
    predicting = torch.cat([packed.places[row][len(example.context) - 1 : -1] for row, example in enumerate(batch)]).to(
        model.device
    )
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        packing=packed.packing,
        logits_to_keep=predicting,
        use_cache=False,
    ).logits[0]
    targets = torch.tensor([token for example in batch for token in example.target], device=model.device)
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    is_refusal = torch.tensor(
        [example.kind == "refusal" for example in batch for _ in example.target], device=model.device
    )
    return losses[is_refusal].mean(), losses[~is_refusal].mean()


class MasterWeights:
    """Float32 masters of a model's trainable parameters, stepped by an optimiser, copied back after every step."""

    def __init__(
        self, model: torch.nn.Module, recipe: Recipe, optimiser: type[torch.optim.Optimizer] = torch.optim.AdamW
    ) -> None:
        self.working = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.masters = [parameter.detach().float().clone() for parameter in self.working]
        self.optimiser = optimiser(self.masters, lr=recipe.learning_rate, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimiser, gamma=recipe.decay)
        self.scaled = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self.scale = _FIRST_SCALE if self.scaled else 1.0

    def backward(self, loss: torch.Tensor) -> bool:
        """Leave the scaled loss's gradients on the model; False if they overflowed, and the step is to be done again.

        Raises
        ------
        FloatingPointError
            The gradients overflow float16 without any scaling.
        """
        (loss * self.scale).backward()
        if not self.scaled or all(parameter.grad.isfinite().all() for parameter in self.working):
            return True
        if self.scale <= 1:
            raise FloatingPointError("the gradients do not fit into float16; a GPU with bfloat16 is needed")
        self.scale /= 2
        for parameter in self.working:
            parameter.grad = None
        return False

    def step(self) -> float:
        """Apply the gradients that ``backward`` left on the model; returns the step size that was used."""
        step_size = self.schedule.get_last_lr()[0]
        for master, parameter in zip(self.masters, self.working, strict=True):
            master.grad, parameter.grad = parameter.grad.float() / self.scale, None
        self.optimiser.step()
        self.schedule.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.working, strict=True):
                parameter.copy_(master)
        return step_size


@contextlib.contextmanager
def thrifty(model: PeftModel, recipe: Recipe) -> Iterator[None]:
    """On a GPU with too little memory for a step's activations, compute them a second time instead of keeping them."""
    on_gpu = model.device.type == "cuda"
    if not on_gpu or memory.fits(Shape.of(model.config), recipe, model.dtype.itemsize, memory.free(model.device)):
        yield
        return
    with recomputing(model):
        yield


@contextlib.contextmanager
def recomputing(model: PeftModel) -> Iterator[None]:
    """Keep only every layer's input for the backward pass; the gradients are the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5 renames these two under way
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()


def _remedy(untrained_in_float16: bool) -> str:
    """What helps against a loss that is not finite: before the first update, no learning rate is to blame."""
    return (
        "the model's activations do not fit into float16; a GPU with bfloat16 is needed"
        if untrained_in_float16
        else "a smaller learning rate is needed"
    )


def train(
    model: PeftModel,
    batches: Iterable[list[Example]],
    recipe: Recipe,
    description: str = "training",
    silent: bool = False,
    optimiser: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> list[StepRecord]:
    """Fine-tune the model's adapters in place.

    Parameters
    ----------
    model
        A model with adapters (:func:`safetylib.study.models.with_adapters`).
    batches
        One list of examples a step (:func:`safetylib.study.augment.batches`).
    optimiser
        A class of ``torch.optim`` that takes ``lr`` and ``weight_decay``; the study's runs use AdamW.

    Returns
    -------
    list of StepRecord

    Raises
    ------
    FloatingPointError
        The loss is not finite; names the step.
    """
    weights, records = MasterWeights(model, recipe, optimiser), []
    model.train()
    with thrifty(model, recipe):
        for step, batch in enumerate(tqdm(batches, description, total=recipe.steps, disable=silent, unit="step")):
            while True:
                refusal_loss, anchor_loss = target_losses(model, batch)
                loss = refusal_loss + recipe.anchor_weight * anchor_loss
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss at step {step} is {loss.item()}; {_remedy(weights.scaled and not step)}"
                    )
                if weights.backward(loss):
                    break
            step_size = weights.step()
            records.append(StepRecord(step, step_size, refusal_loss.item(), anchor_loss.item(), **token_counts(batch)))
    model.eval()
    return records


def as_rows(records: list[StepRecord]) -> list[dict]:
    """Records as dictionaries, for a table."""
    return [asdict(record) for record in records]
