"""Fine-tuning steps with 4-bit weights and LoRA, loss on the completions: ``transformers.Trainer`` on padded batches and TRL's
``SFTTrainer`` (``pip install -e ".[benchmarks]"``), each against :mod:`safetylib.study.train`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from benchmarks.timing import Comparison, compare
from safetylib.study import augment, models, train
from safetylib.study.presets import Recipe, preset
from safetylib.study.units import Study

STEPS = 5


def padded(batch: list[augment.Example], pad: int) -> dict[str, torch.Tensor]:
    """A right-padded batch with labels on the targets alone, as a collator makes it."""
    length = max(len(example.context) + len(example.target) for example in batch)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in batch:
        ids, blank = example.context + example.target, length - len(example.context) - len(example.target)
        rows["input_ids"].append(ids + [pad] * blank)
        rows["attention_mask"].append([1] * len(ids) + [0] * blank)
        rows["labels"].append([-100] * len(example.context) + example.target + [-100] * blank)
    return {name: torch.tensor(values) for name, values in rows.items()}


def masked(example: augment.Example) -> dict[str, list[int]]:
    """Token ids, and which of them are the target's."""
    return {
        "input_ids": example.context + example.target,
        "completion_mask": [0] * len(example.context) + [1] * len(example.target),
    }


@cache
def work(steps: int = STEPS) -> tuple[Study, Recipe, list[list[augment.Example]]]:
    """The cyclic arm's own batches, the same for all."""
    plan = preset("cpu")
    study = Study(plan, Path(tempfile.mkdtemp()), silent=True, per_set=24)
    study.run(["answers"])
    recipe = replace(plan.recipe, steps=steps, anchor_weight=1.0)
    return study, recipe, list(augment.batches("cyclic", recipe, study.material, seed=0))


def against(peer: str, trained: Callable[[PeftModel, list[list[augment.Example]], Study, dict], None]) -> Comparison:
    """A trainer that gets the model with adapters, the batches, the study and the settings that all trainers share."""
    study, recipe, batches = work()
    lora = LoraConfig(
        r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, target_modules=recipe.lora.targets, task_type="CAUSAL_LM"
    )
    base = copy.deepcopy(study.base)
    base.set_attn_implementation("sdpa")
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": len(batches[0]),
        "max_steps": recipe.steps,
        "learning_rate": 1e-3,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }

    def theirs():
        model = get_peft_model(base, lora)
        trained(model, batches, study, settings)
        model.unload()

    def ours():
        model = models.with_adapters(study.base, recipe.lora, 0)
        train.train(model, batches, recipe, silent=True)
        models.remove_adapters(model)

    return compare(f"{recipe.steps} steps of {len(batches[0])} examples", peer, theirs, ours, repeats=2)


def main() -> Comparison:
    """transformers' own trainer, with a collator that pads."""

    def trained(model, batches, study, settings):
        examples = [example for batch in batches for example in batch]
        pad = study.tokenizer.pad_token_id
        arguments = TrainingArguments(**settings)
        Trainer(model, arguments, train_dataset=examples, data_collator=lambda batch: padded(batch, pad)).train()

    return against("transformers.Trainer", trained)


def sft() -> Comparison | None:
    """TRL's, on the same token ids, without the activations' recomputation that it has by default; None if it is not there."""
    try:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        print('sft: the peer is missing; pip install -e ".[benchmarks]"')
        return None

    def trained(model, batches, study, settings):
        rows = [masked(example) for batch in batches for example in batch]
        arguments = SFTConfig(
            **settings, completion_only_loss=True, gradient_checkpointing=False, bf16=False, max_length=None
        )
        SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=study.tokenizer).train()

    return against("TRL's SFTTrainer", trained)


if __name__ == "__main__":
    main()
    sft()
