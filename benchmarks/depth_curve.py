"""Responses after prefixes of every depth: Hugging Face ``generate`` at each of them against one pass and its branches."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.timing import Comparison, compare
from safetylib.study import augment, detectors, generate, models, train
from safetylib.study.presets import preset
from safetylib.study.units import Study

SOME_DEPTHS = (0, 2, 5, 12, 20, 40)
WITHIN = 16


def deep() -> Comparison:
    """An arm whose refusals leave the prefix soon."""
    return curve("deep")


def shallow() -> Comparison:
    """An arm that goes on with the untuned model's answer."""
    return curve("shallow")


def whole() -> Comparison:
    """All the depths that the study measures: the more there are, the more they share."""
    return curve("deep", preset("cpu").measurement.depths, prompts=16)


def curve(arm: str, depths: tuple[int, ...] = SOME_DEPTHS, prompts: int = 64) -> Comparison:
    """An adapter of an arm, trained by the study's recipe on a slice of its prompts, merged; test prompts; no refusal is
    followed further."""
    plan = preset("cpu")
    plan = replace(plan, measurement=replace(plan.measurement, depths=depths, within=WITHIN))  # prefixes long enough
    study = Study(plan, Path(tempfile.mkdtemp()), silent=True, per_set=prompts)
    study.run(["answers"])
    model = models.with_adapters(study.base, plan.recipe.lora, 0)
    train.train(model, augment.batches(arm, plan.recipe, study.material, 0), plan.recipe, silent=True)
    model = model.merge_and_unload().eval()
    peer, prepacked = copy.deepcopy(model), models.for_inference(model)  # once a model, as loading is
    peer.set_attn_implementation("sdpa")
    group = study.chosen("harmful", "test")
    questions, trunks = [study.ids[prompt.id] for prompt in group], [study.answers[prompt.id] for prompt in group]
    eos, pad = study.tokenizer.eos_token_id, study.tokenizer.pad_token_id

    @torch.inference_mode()
    def theirs() -> dict[tuple[int, int], list[int]]:
        found = {}
        for depth in depths:
            contexts = [question + trunk[:depth] for question, trunk in zip(questions, trunks, strict=True)]
            length = max(map(len, contexts))
            ids = torch.tensor([[pad] * (length - len(context)) + context for context in contexts])
            mask = torch.tensor([[0] * (length - len(context)) + [1] * len(context) for context in contexts])
            out = peer.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=WITHIN, eos_token_id=eos, pad_token_id=pad
            )[:, length:].tolist()
            found |= {
                (row, depth): tokens[: tokens.index(eos)] if eos in tokens else tokens for row, tokens in enumerate(out)
            }
        return found

    def ours() -> dict[tuple[int, int], list[int]]:
        found = generate.depth_responses(prepacked, questions, trunks, depths, WITHIN, 0, eos, lambda _: False)
        return {key: response.tokens for key, response in found.items()}

    first, second = theirs(), ours()
    pairs = [(first[key], second[key]) for key in second]
    same = sum(one == other for one, other in pairs) / len(pairs)
    verdicts = sum(len({detectors.MAIN(study.text(tokens)) for tokens in pair}) == 1 for pair in pairs) / len(pairs)
    print(
        f"{len(pairs)} responses; bfloat16, so near-ties may fall either way: "
        f"{same:.0%} agree token by token, {verdicts:.0%} in the detector's verdict"
    )
    return compare(
        f"responses at {len(depths)} depths, {len(group)} prompts, {arm} arm",
        "generate at every depth",
        theirs,
        ours,
        repeats=3,
    )


if __name__ == "__main__":
    deep()
    shallow()
    whole()
