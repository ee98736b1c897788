"""Ratings: a judge that generates its verdict against :func:`safetylib.study.judge.rate`, which reads it off the logits."""

from __future__ import annotations

import copy

import torch

from benchmarks.timing import Comparison, compare
from safetylib.study import judge, models, prompts
from safetylib.study.presets import preset

SHORT_VERDICT, LONG_VERDICT = (
    24,
    64,
)  #: a sentence and a rating; reasons and a rating, as published judges are asked for


def main(count: int = 64, verdict_tokens: int = SHORT_VERDICT) -> Comparison:
    """Benign prompts with refusal wordings as responses; the same judge prompt for both."""
    model, tokenizer = models.load(preset("cpu").model)
    peer = copy.deepcopy(model)
    peer.set_attn_implementation("sdpa")
    wordings = prompts.refusals("train")
    pairs = [(prompt.text, wordings[row % len(wordings)]) for row, prompt in enumerate(prompts.benign()[:count])]

    @torch.inference_mode()
    def theirs() -> list[str]:
        contexts = [judge._judge_ids(tokenizer, *pair) for pair in pairs]
        length, pad = max(map(len, contexts)), tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(context)) + context for context in contexts])
        mask = torch.tensor([[0] * (length - len(context)) + [1] * len(context) for context in contexts])
        out = peer.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=verdict_tokens, pad_token_id=pad)
        return tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)

    verdicts = theirs()
    print(
        f"generated verdicts in which a digit from 1 to 5 can be found: {sum(any(d in v for d in '12345') for v in verdicts)} of {count}"
    )
    return compare(
        f"{count} ratings", f"generating {verdict_tokens} tokens", theirs, lambda: judge.rate(model, tokenizer, pairs)
    )


def long_verdict() -> Comparison:
    """The same against a judge that gives its reasons first."""
    return main(verdict_tokens=LONG_VERDICT)


if __name__ == "__main__":
    main()
    long_verdict()
