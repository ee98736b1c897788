"""Responses: greedy decoding of many prompts at once, and depth branches that share one trunk.

A *trunk* is a prompt followed by the untuned model's own answer. One packed forward pass over all trunks gives the next
token at every position; a response after a prefix of k tokens follows the trunk as long as the model agrees with it, and
leaves it where it first disagrees. Prefixes whose responses leave at the same place share one branch, decoded once from
the trunk's keys and values. In float32 the texts equal those of decoding every depth by itself (a test says so); in
bfloat16 near-ties may fall the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel

from safetylib.study.attention import KeyValueStore, Packed, RaggedCache, pack
from safetylib.study.registry import Shape

_ROWS = 256
PACKED_TOKENS = 8000

# A batch may hold fewer of a model with a large vocabulary or with many key heads: at most so many logits, and numbers in keys
# and values (rows of about so many tokens; a quarter of it in one packed pass). The same on every device, so that batches are.
_LOGITS = 400_000_000
_CACHED = 800_000_000
_ROW_TOKENS = 250


@dataclass
class Response:
    """Token ids of a response, without the end-of-sequence token, and whether it ended by itself."""

    tokens: list[int]
    ended: bool


@torch.inference_mode()
def prefill(
    model: PreTrainedModel, sequences: list[list[int]], wanted: list[Iterable[int]]
) -> tuple[Packed, KeyValueStore, list[torch.Tensor]]:
    """One forward pass over packed sequences.

    Parameters
    ----------
    sequences
        Token ids, one list a sequence.
    wanted
        Per sequence, the positions at which next-token logits are needed.

    Returns
    -------
    packed, store, logits
        ``logits[i]`` has shape (len(wanted[i]), vocabulary), float32.

    Raises
    ------
    FloatingPointError
        The model's activations overflow float16, so that what it says would mean nothing.
    """
    packed, store = pack(sequences, model.device), KeyValueStore()
    places = [
        packed.places[row][torch.as_tensor(list(positions), dtype=torch.long)] for row, positions in enumerate(wanted)
    ]
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        past_key_values=store,
        packing=packed.packing,
        logits_to_keep=torch.cat(places).to(model.device),
    ).logits[0]
    if logits.dtype == torch.float16 and not logits.isfinite().all():
        raise FloatingPointError("the model's activations do not fit into float16; a GPU with bfloat16 is needed")
    return packed, store, list(logits.float().split([len(place) for place in places]))


def most_rows(shape: Shape) -> int:
    """Rows that are decoded together."""
    return min(_ROWS, max(1, _CACHED // (shape.keys_and_values * _ROW_TOKENS)))


def most_tokens(shape: Shape) -> int:
    """Tokens of one packed forward pass."""
    return min(PACKED_TOKENS, _LOGITS // shape.vocabulary, _CACHED // 4 // shape.keys_and_values)


def chunks(
    sequences: list[list[int]], rows: int = _ROWS, tokens: int = PACKED_TOKENS, *, model: PreTrainedModel | None = None
) -> Iterator[list[int]]:
    """Indices of sequences in batches of bounded size, similar lengths together; of what ``model`` can hold, if given."""
    if model is not None:
        shape = Shape.of(model.config)
        rows, tokens = min(rows, most_rows(shape)), min(tokens, most_tokens(shape))
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
        if batch and (len(batch) == rows or (len(batch) + 1) * len(sequences[index]) > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def advance(model: PreTrainedModel, cache: RaggedCache, tokens: list[int]) -> torch.Tensor:
    """Append one token to every row of a cache; the logits of the token after it, shape (rows, vocabulary)."""
    logits = model(
        input_ids=torch.tensor(tokens, device=model.device)[:, None],
        position_ids=cache.lengths[:, None],
        past_key_values=cache,
        key_lengths=cache.lengths + 1,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.lengths = cache.lengths + 1
    return logits


@torch.inference_mode()
def extend(
    model: PreTrainedModel, cache: RaggedCache, responses: list[Response], wants_more: Callable[[int], bool], eos: int
) -> None:
    """Greedy decoding in place: append to every response until it ends or ``wants_more(row)`` is false.

    The last token of each response has not been seen by the model yet. Finished rows leave the batch, and the cache.
    """
    alive = list(range(len(responses)))
    while True:
        going_on = [not responses[row].ended and wants_more(row) for row in alive]
        if not any(going_on):
            return
        if not all(going_on):
            order = closed_up(going_on)
            cache.keep(order)
            alive = [alive[place] for place in order]
        logits = advance(model, cache, [responses[row].tokens[-1] for row in alive])
        for row, token in zip(alive, logits.max(-1).indices.tolist(), strict=True):
            if token == eos:
                responses[row].ended = True
            else:
                responses[row].tokens.append(token)


def closed_up(going_on: list[bool]) -> list[int]:
    """Places that go on, in an order in which those at the end fill the gaps of those that do not: few rows move."""
    count = sum(going_on)
    late = (place for place in range(count, len(going_on)) if going_on[place])
    return [place if going_on[place] else next(late) for place in range(count)]


def begin(token: int, eos: int) -> Response:
    """A response that starts with this token."""
    return Response([], True) if token == eos else Response([token], False)


def answer(
    model: PreTrainedModel,
    prompts: list[list[int]],
    limit: int,
    eos: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Response]:
    """Greedy responses of at most ``limit`` tokens to prompts given as token ids.

    ``progress`` is called with the number of prompts just finished.
    """
    responses: list[Response] = [Response([], True)] * len(prompts)
    for batch in chunks(prompts, model=model):
        packed, store, logits = prefill(model, [prompts[i] for i in batch], [[len(prompts[i]) - 1] for i in batch])
        rows = [begin(int(row.argmax()), eos) for row in logits]
        started = [place for place, row in enumerate(rows) if not row.ended]
        if started:
            cached = store.branch([packed.places[place] for place in started])
            decoding = [rows[place] for place in started]
            extend(model, cached, decoding, lambda row, rows=decoding: len(rows[row].tokens) < limit, eos)
        for index, row in zip(batch, rows, strict=True):
            responses[index] = row
        progress(len(batch))
    return responses


def follow_then_leave(choices: list[int], trunk: list[int], start: int, within: int) -> int | None:
    """Where greedy decoding from ``start`` leaves the trunk: the first position j with ``choices[j] != trunk[j]``.

    None if it follows the trunk for ``within`` tokens. ``choices[j]`` is the model's token after j trunk tokens; the
    trunk may end with an end-of-sequence token.
    """
    for j in range(start, min(start + within, len(trunk))):
        if choices[j] != trunk[j]:
            return j
    return None


def depth_responses(
    model: PreTrainedModel,
    prompts: list[list[int]],
    trunks: list[list[int]],
    depths: tuple[int, ...],
    within: int,
    after: int,
    eos: int,
    refused: Callable[[list[int]], bool],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[tuple[int, int], Response]:
    """Greedy responses after prefixes of every depth, all from one pass over the trunks.

    Parameters
    ----------
    prompts, trunks
        Token ids of each prompt, and of the untuned model's answer to it: at least ``max(depths) + within`` tokens, or
        closed by ``eos``.
    depths
        Prefix lengths k; a depth that a trunk does not reach is left out of the result.
    within, after
        A response is decoded for ``within`` tokens, and for ``after`` more if it is a refusal by then.
    refused
        Says whether a response's tokens read as a refusal.

    Returns
    -------
    dict
        (row of ``prompts``, depth) -> the response after the prefix.
    """
    result: dict[tuple[int, int], Response] = {}
    sequences = [prompt + trunk for prompt, trunk in zip(prompts, trunks, strict=True)]
    width = most_rows(Shape.of(model.config))
    for batch in chunks(sequences, model=model):
        wanted = [range(len(prompts[i]) - 1, len(sequences[i]) - 1) for i in batch]
        packed, store, logits = prefill(model, [sequences[i] for i in batch], wanted)
        leaves: dict[tuple[int, int], int | None] = {}
        branches: dict[tuple[int, int], Response] = {}
        for place, i in enumerate(batch):
            choices = logits[place].argmax(-1).tolist()
            reached = len(trunks[i]) - (trunks[i][-1] == eos)
            for depth in (depth for depth in depths if depth < reached):
                leave = leaves[i, depth] = follow_then_leave(choices, trunks[i], depth, within)
                if leave is not None:
                    branches[i, leave] = begin(choices[leave], eos)
        place_of = {i: place for place, i in enumerate(batch)}
        open_branches = [key for key, response in branches.items() if not response.ended]
        for first in range(0, len(open_branches), width):
            keys = open_branches[first : first + width]
            rows = [branches[key] for key in keys]
            starts = [[depth for (row, depth), leave in leaves.items() if (row, leave) == key] for key in keys]
            more = _until_decided(rows, keys, starts, trunks, within, after, refused)
            places = [packed.places[place_of[i]][: len(prompts[i]) + leave] for i, leave in keys]
            extend(model, store.branch(places), rows, more, eos)
        for i, depth in leaves:
            leave = leaves[i, depth]
            if leave is None:
                ran = trunks[i][depth : depth + within]
                result[i, depth] = Response([token for token in ran if token != eos], eos in ran)
            else:
                branch = branches[i, leave]
                tokens = trunks[i][depth:leave] + branch.tokens
                # A branch may have been decoded further for another depth's sake.
                kept = within + after if refused(tokens[:within]) else within
                result[i, depth] = Response(tokens[:kept], branch.ended and len(tokens) <= kept)
        progress(len(batch))
    return result


def _until_decided(rows, keys, starts, trunks, within, after, refused) -> Callable[[int], bool]:
    """For ``extend``: decode ``within`` tokens, and ``after`` more where a response through the branch refuses by then."""

    @cache
    def refuses(row: int) -> bool:
        (i, leave), tokens = keys[row], rows[row].tokens[:within]
        return any(refused((trunks[i][depth:leave] + tokens)[:within]) for depth in starts[row])

    def wants_more(row: int) -> bool:
        length = len(rows[row].tokens)
        return length < within or (length < within + after and refuses(row))

    return wants_more
