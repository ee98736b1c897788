"""Greedy responses: Hugging Face ``generate`` on a padded batch against :func:`safetylib.study.generate.answer`; and five
adapters one after another, against :class:`safetylib.study.together.Ensemble`.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from benchmarks.timing import Comparison, compare
from safetylib.study import generate, models, prompts
from safetylib.study.presets import preset
from safetylib.study.together import Ensemble

TOKENS = 48


def padded_generate(
    model: PreTrainedModel, contexts: list[list[int]], tokens: int, eos: int, pad: int
) -> list[list[int]]:
    """Greedy responses by ``generate`` on one left-padded batch, without what follows the end-of-sequence token."""
    length = max(map(len, contexts))
    ids = torch.tensor([[pad] * (length - len(context)) + context for context in contexts])
    mask = torch.tensor([[0] * (length - len(context)) + [1] * len(context) for context in contexts])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, eos_token_id=eos, pad_token_id=pad
        )[:, length:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in out]


def batch(count: int = 64) -> Comparison:
    """Benign prompts, one batch."""
    model, tokenizer = models.load(preset("cpu").model)
    peer, prepacked = copy.deepcopy(model), models.for_inference(model)  # once a model, as loading is
    peer.set_attn_implementation("sdpa")
    questions = [models.chat_ids(tokenizer, prompt.text) for prompt in prompts.benign()[:count]]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def theirs():
        return padded_generate(peer, questions, TOKENS, eos, pad)

    def ours():
        return [response.tokens for response in generate.answer(prepacked, questions, TOKENS, eos)]

    same = sum(one == other for one, other in zip(theirs(), ours(), strict=True)) / count
    print(f"bfloat16, so near-ties may fall either way: {same:.0%} of the responses agree token by token")
    return compare(f"{count} responses of at most {TOKENS} tokens", "generate", theirs, ours, repeats=5)


def five_adapters(count: int = 16, tokens: int = 32) -> Comparison:
    """Five adapters answer the same prompts: switched on one after another in peft, or all in one batch."""
    base, tokenizer = models.load(preset("cpu").model)
    questions = [models.chat_ids(tokenizer, prompt.text) for prompt in prompts.benign()[:count]]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    folder = Path(tempfile.mkdtemp())
    for seed in range(5):
        models.with_adapters(base, preset("cpu").recipe.lora, seed).save_pretrained(folder / str(seed))
        base = models.load(preset("cpu").model)[0]
    switched = copy.deepcopy(base)
    switched.set_attn_implementation("sdpa")
    switched = PeftModel.from_pretrained(switched, folder / "0", adapter_name="0", autocast_adapter_dtype=False)
    for seed in range(1, 5):
        switched.load_adapter(folder / str(seed), adapter_name=str(seed), autocast_adapter_dtype=False)

    def theirs():
        answers = []
        for seed in range(5):
            switched.set_adapter(str(seed))
            answers.append(padded_generate(switched, questions, tokens, eos, pad))
        return answers

    def ours():  # loading the adapters included
        ensemble = Ensemble(base, [folder / str(seed) for seed in range(5)])
        return [[row.tokens for row in answers] for answers in ensemble.answer(questions, tokens, eos)]

    same = sum(one == other for pair in zip(theirs(), ours(), strict=True) for one, other in zip(*pair, strict=True))
    print(f"{same / (5 * count):.0%} of the responses agree token by token")
    return compare(
        f"responses of five adapters to {count} prompts", "peft, one adapter after another", theirs, ours, repeats=2
    )


if __name__ == "__main__":
    batch()
    five_adapters()
