"""Fine-tuning steps: ``transformers.Trainer`` with peft on padded batches against :mod:`safetylib.study.train`."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from benchmarks.timing import Comparison, compare
from safetylib.study import augment, models, train
from safetylib.study.presets import preset
from safetylib.study.units import Study

STEPS = 2


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


def main(steps: int = STEPS) -> Comparison:
    """The cyclic arm's own batches, the same for both."""
    plan = preset("cpu")
    study = Study(plan, Path(tempfile.mkdtemp()), silent=True, per_set=24)
    study.run(["answers"])
    recipe = replace(plan.recipe, steps=steps, anchor_weight=1.0)
    batches = list(augment.batches("cyclic", recipe, study.material, seed=0))
    lora = LoraConfig(
        r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, target_modules=recipe.lora.targets, task_type="CAUSAL_LM"
    )
    peer_base = copy.deepcopy(study.base)
    peer_base.set_attn_implementation("sdpa")
    pad = study.tokenizer.pad_token_id

    def theirs():
        model = get_peft_model(peer_base, lora)
        arguments = TrainingArguments(
            tempfile.mkdtemp(), per_device_train_batch_size=len(batches[0]), max_steps=steps, learning_rate=1e-3,
            use_cpu=not torch.cuda.is_available(), report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        examples = [example for batch in batches for example in batch]
        Trainer(model, arguments, train_dataset=examples, data_collator=lambda batch: padded(batch, pad)).train()
        model.unload()

    def ours():
        model = models.with_adapters(study.base, recipe.lora, 0)
        train.train(model, batches, recipe, silent=True)
        models.remove_adapters(model)

    return compare(f"{steps} steps of {len(batches[0])} examples", "transformers.Trainer", theirs, ours, repeats=2)


if __name__ == "__main__":
    main()
