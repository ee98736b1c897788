"""Ratings: a judge that generates its verdict against :func:`safetylib.study.judge.rate`, which reads it off the logits."""

from __future__ import annotations

import copy

import torch

from benchmarks.timing import Comparison, compare
from safetylib.study import judge, models, prompts
from safetylib.study.presets import preset

VERDICT_TOKENS = 24  #: the most that a verdict may take; 64 took the same time, as replies end by themselves


def main(count: int = 64) -> Comparison:
    """Benign prompts with refusal wordings as responses; the same judge prompt for both."""
    model, tokenizer = models.load(preset("cpu").model)
    peer, prepacked = copy.deepcopy(model), models.for_inference(model)  # once a model, as loading is
    peer.set_attn_implementation("sdpa")
    wordings = prompts.refusals("train")
    pairs = [(prompt.text, wordings[row % len(wordings)]) for row, prompt in enumerate(prompts.benign()[:count])]

    @torch.inference_mode()
    def theirs() -> list[str]:
        contexts = [judge._judge_ids(tokenizer, *pair) for pair in pairs]
        length, pad = max(map(len, contexts)), tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(context)) + context for context in contexts])
        mask = torch.tensor([[0] * (length - len(context)) + [1] * len(context) for context in contexts])
        out = peer.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=VERDICT_TOKENS, pad_token_id=pad)
        return tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)

    verdicts = theirs()
    print(
        f"generated verdicts in which a digit from 1 to 5 can be found: {sum(any(d in v for d in '12345') for v in verdicts)} of {count}"
    )
    return compare(
        f"{count} ratings",
        f"generating at most {VERDICT_TOKENS} tokens",
        theirs,
        lambda: judge.rate(prepacked, tokenizer, pairs),
        repeats=5,
    )


if __name__ == "__main__":
    main()
