"""Ratings: a judge that generates its verdict against :func:`safetylib.study.judge.rate`, which reads it off the logits."""

from __future__ import annotations

import copy

from benchmarks.generation import padded_generate
from benchmarks.timing import Comparison, compare
from safetylib.study import judge, models, prompts
from safetylib.study.presets import preset


def main() -> Comparison:
    """The peer writes a verdict of at most 24 tokens. Most end by themselves sooner; the batch ends when its longest verdict has."""
    return _ratings("generating at most 24 tokens", 24)


def first_token() -> Comparison:
    """The peer is stopped at the first token of its verdict, which is a digit where the prompt ends in "Rating: "."""
    return _ratings("generating one token", 1)


def _ratings(peer_name: str, most_tokens: int, count: int = 64) -> Comparison:
    """Benign prompts with refusal wordings as responses; the same judge prompt for both."""
    model, tokenizer = models.load(preset("cpu").model)
    peer, prepacked = copy.deepcopy(model), models.for_inference(model)  # once a model, as loading is
    peer.set_attn_implementation("sdpa")
    wordings = prompts.refusals("train")
    pairs = [(prompt.text, wordings[row % len(wordings)]) for row, prompt in enumerate(prompts.benign()[:count])]

    def theirs() -> list[str]:
        contexts = [judge._judge_ids(tokenizer, *pair) for pair in pairs]
        replies = padded_generate(peer, contexts, most_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return tokenizer.batch_decode(replies, skip_special_tokens=True)

    found = sum(any(digit in verdict for digit in "12345") for verdict in theirs())
    print(f"generated verdicts in which a digit from 1 to 5 can be found: {found} of {count}")
    return compare(f"{count} ratings", peer_name, theirs, lambda: judge.rate(prepacked, tokenizer, pairs), repeats=5)


if __name__ == "__main__":
    main()
    first_token()
