r"""Transition probabilities read off by teacher forcing: Q(H_k, R) at many depths from one forward pass, and Q(r, r).

A refusal has many spellings, so the probability that one *starts* after k tokens of a harmful answer is a sum,

.. math:: q_k = \sum_{o \in \text{openings}} p(o \mid \text{prompt}, y_1 \dots y_k),

over the distinct openings of the known refusal wordings (the separator, where something precedes, and the wording's first
tokens). One packed pass over prompt and answer gives the first factor at every k; the others are followed along the
tree of openings, leaving out branches below a bound, so that what is left out is known: each returned value is short by at
most its own ``missed``. A refusal that starts anywhere within m tokens, if the answer goes on as the untuned model's does until
then, has probability 1 - (1 - q_k)(1 - q_{k+1}) ... (1 - q_{k+m-1}).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from safetylib.study.generate import advance, chunks, most_rows, prefill
from safetylib.study.registry import Shape


def openings(wordings: Sequence[Sequence[int]], separator: int, words: int = 2) -> list[tuple[int, ...]]:
    """Distinct beginnings of refusal wordings given as token ids: ``separator`` tokens and ``words`` more."""
    return sorted({tuple(wording[: separator + words]) for wording in wordings})


@torch.inference_mode()
def starting_probabilities(
    model: PreTrainedModel,
    prompts: list[list[int]],
    trunks: list[list[int]],
    openings_at_start: Sequence[tuple[int, ...]],
    openings_later: Sequence[tuple[int, ...]],
    least: float = 1e-2,
    positions: Sequence[int] | None = None,
) -> tuple[list[np.ndarray], float]:
    """Probability that a refusal starts after every number of tokens of the given answers.

    Parameters
    ----------
    prompts, trunks
        Token ids of each prompt, and of the answer that is forced on the model.
    openings_at_start, openings_later
        Openings of a refusal with nothing before it, and after a harmful prefix.
    least
        Branches of the tree of openings with a probability below this are left out.
    positions
        Only after these numbers of tokens; elsewhere the result is zero. All by default.

    Returns
    -------
    probabilities, missed
        Per prompt an array q_0 ... q_len(trunk); and the largest probability that was left out at any place.
    """
    found = [np.zeros(len(trunk) + 1) for trunk in trunks]
    missed = 0.0
    sequences = [prompt + trunk for prompt, trunk in zip(prompts, trunks, strict=True)]
    for batch in chunks(sequences, model=model):
        wanted = [range(len(prompts[i]) - 1, len(sequences[i])) for i in batch]
        packed, store, logits = prefill(model, [sequences[i] for i in batch], wanted)
        rows = []  # (place in the batch, position, opening so far, its probability)
        for place, i in enumerate(batch):
            chances = logits[place].softmax(-1)
            for position in range(len(trunks[i]) + 1) if positions is None else positions:
                known = openings_later if position else openings_at_start
                firsts = sorted({opening[0] for opening in known})
                chance = chances[position, firsts].tolist()
                rows += [(place, position, (first,), value) for first, value in zip(firsts, chance, strict=True)]
        while rows:
            kept, dropped = [], {}
            for row in rows:
                place, position, opening, chance = row
                known = openings_later if position else openings_at_start
                if opening in known:
                    found[batch[place]][position] += chance
                elif chance >= least:
                    kept.append(row)
                else:
                    dropped[place, position] = dropped.get((place, position), 0.0) + chance
            missed = max([missed, *dropped.values()])
            rows = _children(model, packed, store, kept, [prompts[i] for i in batch], openings_at_start, openings_later)
    return found, missed


def _children(model, packed, store, rows, prompts, openings_at_start, openings_later):
    """The next tokens of unfinished openings, with the probability of the whole opening so far.

    Rows are decoded in groups of equal length of opening, each from the stored keys and values of its prefix.
    """
    children = []
    width = most_rows(Shape.of(model.config))
    for first in range(0, len(rows), width):
        group = rows[first : first + width]
        length = len(group[0][2])
        places = [packed.places[place][: len(prompts[place]) + position] for place, position, _, _ in group]
        cache = store.branch(places)
        for step in range(length):
            logits = advance(model, cache, [opening[step] for _, _, opening, _ in group])
        chances = logits.float().softmax(-1).cpu().numpy()
        for row, (place, position, opening, chance) in enumerate(group):
            known = openings_later if position else openings_at_start
            following = sorted({other[length] for other in known if other[:length] == opening})
            children += [
                (place, position, (*opening, token), chance * float(chances[row, token])) for token in following
            ]
    return children


def within(probabilities: np.ndarray, depth: int, window: int) -> float:
    """Probability that a refusal starts within ``window`` tokens after ``depth``, from starting probabilities."""
    return float(1 - np.prod(1 - probabilities[depth : depth + window]))


@torch.inference_mode()
def stopping_probabilities(model: PreTrainedModel, responses: list[list[int]], eos: int) -> np.ndarray:
    """Probability that a text ends right where it stands: for a complete refusal, of staying one by saying no more.

    ``responses`` are prompt and response as token ids, without the end-of-sequence token. Shape (len(responses),).
    """
    result = np.zeros(len(responses))
    for batch in chunks(responses, model=model):
        _, _, logits = prefill(model, [responses[i] for i in batch], [[len(responses[i]) - 1] for i in batch])
        for i, row in zip(batch, logits, strict=True):
            result[i] = float(row[0].softmax(-1)[eos])
    return result
