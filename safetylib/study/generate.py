"""Responses: greedy decoding of many prompts at once, and depth branches that share one trunk.

A *trunk* is a prompt followed by the untuned model's own answer. One packed forward pass over all trunks knows the next
token at every position; it is computed only where it decides. A response after a prefix of k tokens follows the trunk
as long as the model agrees with it, and leaves it where it first disagrees. Prefixes whose responses leave at the same
place share one branch, decoded once from the trunk's keys and values; branches that begin later join those that are
left. In float32 the texts equal those of decoding every depth by itself (a test says so); in bfloat16 near-ties may
fall the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel

from safetylib.study.attention import KeyValueStore, Packed, RaggedCache, SeveralCaches, pack, shared_tokens
from safetylib.study.registry import Shape

_ROWS = 256
PACKED_TOKENS = 8000
READ_TOKENS = 4000  #: if nothing is decoded afterwards: what a layer hands to the next stays in a processor's cache

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
    packed = pack(sequences, model.device)
    places = [
        packed.places[row][torch.as_tensor(list(positions), dtype=torch.long)] for row, positions in enumerate(wanted)
    ]
    store, output = _read(model, packed, logits_to_keep=torch.cat(places).to(model.device))
    logits = _finite(output.logits[0]).float()
    return packed, store, list(logits.split([len(place) for place in places]))


@torch.inference_mode()
def next_logits(model: PreTrainedModel, sequences: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Next-token logits after each sequence, batch by batch: indices of sequences, and logits of shape (batch, vocabulary).

    What all sequences begin with is read once, with the first batch; the others go on from its keys and values.

    Raises
    ------
    FloatingPointError
        The model's activations overflow float16, so that what it says would mean nothing.
    """
    shared, before = shared_tokens(sequences) if sequences else 0, None
    for batch in chunks(sequences):
        packed = pack([sequences[index] for index in batch], model.device, shared)
        read = 0 if before is None else shared
        ends = torch.stack([places[-1] for places in packed.places]) - read
        store, output = _read(model, packed, before, logits_to_keep=ends.to(model.device))
        yield batch, _finite(output.logits[0]).float()
        if before is None and shared:
            before = store.beginning(shared)


def _read(
    network: torch.nn.Module, packed: Packed, before: list[tuple[torch.Tensor, torch.Tensor]] | None = None, **options
):
    """What a model, or its decoder alone, makes of a packed row, and its keys and values; of the row after its prefix, if the
    prefix's keys and values are known ``before``."""
    store, read = KeyValueStore(before), 0 if before is None else packed.packing.prefix
    output = network(
        input_ids=packed.input_ids[:, read:],
        position_ids=packed.position_ids[:, read:],
        past_key_values=store,
        packing=packed.packing,
        **options,
    )
    return store, output


def _finite(numbers: torch.Tensor) -> torch.Tensor:
    if numbers.dtype == torch.float16 and not numbers.isfinite().all():
        raise FloatingPointError("the model's activations do not fit into float16; a GPU with bfloat16 is needed")
    return numbers


def most_rows(shape: Shape) -> int:
    """Rows that are decoded together."""
    return min(_ROWS, max(1, _CACHED // (shape.keys_and_values * _ROW_TOKENS)))


def most_tokens(shape: Shape) -> int:
    """Tokens of one packed forward pass."""
    return min(PACKED_TOKENS, _LOGITS // shape.vocabulary, _CACHED // 4 // shape.keys_and_values)


def chunks(
    sequences: list[list[int]], rows: int = _ROWS, tokens: int = PACKED_TOKENS, *, model: PreTrainedModel | None = None
) -> Iterator[list[int]]:
    """Indices of sequences in batches of bounded size, similar lengths together: of what ``model`` can hold and decode, or,
    without one, of what is read and not kept."""
    if model is None:
        tokens = min(tokens, READ_TOKENS)
    else:
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
def advance(model: PreTrainedModel, cache: RaggedCache | SeveralCaches, tokens: list[int]) -> torch.Tensor:
    """Append one token to every row of a cache, or of several; the logits of the token after it, shape (rows, vocabulary)."""
    cache.make_room()
    logits = model(
        input_ids=torch.tensor(tokens, device=model.device)[:, None],
        position_ids=cache.lengths[:, None],
        past_key_values=cache,
        rows=cache,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.lengthen()
    return logits


@dataclass
class Batch:
    """Responses that are decoded from one cache, as long as ``wants_more(row)``; ``alive`` are the rows that the cache holds.

    The last token of each response has not been seen by the model yet.
    """

    cache: RaggedCache
    responses: list[Response]
    wants_more: Callable[[int], bool]

    def __post_init__(self) -> None:
        self.alive = list(range(len(self.responses)))

    @classmethod
    def up_to(cls, limit: int, cache: RaggedCache, responses: list[Response]) -> Batch:
        """Responses of at most so many tokens."""
        return cls(cache, responses, lambda row: len(responses[row].tokens) < limit)

    def drop_finished(self) -> None:
        """Finished rows leave the batch, and the cache."""
        going_on = [not self.responses[row].ended and self.wants_more(row) for row in self.alive]
        if not all(going_on):
            order = closed_up(going_on)
            self.cache.keep(order)
            self.alive = [self.alive[place] for place in order]


@torch.inference_mode()
def extend(model: PreTrainedModel, batches: Iterable[Batch], eos: int, beside: int = 0) -> None:
    """Greedy decoding in place: append to every response until it ends or its batch wants no more of it.

    The next batch is asked for, and joins in, as soon as no more than ``beside`` rows are left of those before it: a step of
    few rows takes nearly as long as one of many.
    """
    waiting, running = iter(batches), []
    while True:
        for batch in running:
            batch.drop_finished()
        running = [batch for batch in running if batch.alive]
        while sum(len(batch.alive) for batch in running) <= beside:
            batch = next(waiting, None)
            if batch is None:
                break
            batch.drop_finished()
            if batch.alive:
                running.append(batch)
        if not running:
            return
        rows = [batch.responses[row] for batch in running for row in batch.alive]
        cache = SeveralCaches([batch.cache for batch in running])
        logits = advance(model, cache, [response.tokens[-1] for response in rows])
        for response, token in zip(rows, logits.max(-1).indices.tolist(), strict=True):
            if token == eos:
                response.ended = True
            else:
                response.tokens.append(token)


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
            cache = store.branch([packed.places[place] for place in started])
            extend(model, [Batch.up_to(limit, cache, [rows[place] for place in started])], eos)
        for index, row in zip(batch, rows, strict=True):
            responses[index] = row
        progress(len(batch))
    return responses


def leaving_places(
    choose: Callable[[list[tuple[int, int]]], list[int]],
    trunks: list[list[int]],
    starts: list[tuple[int, int]],
    within: int,
) -> list[tuple[int, int] | None]:
    """Where greedy decoding leaves its trunk, and with which token: the first that is not the trunk's own.

    Parameters
    ----------
    choose
        The model's tokens after so many tokens of so many trunks: of each (trunk, number of tokens). It is asked for no more
        than are needed, once for each place, and for many trunks at a time.
    trunks
        They may end with an end-of-sequence token.
    starts
        From where to look: (trunk, number of its tokens).
    within
        How far to look.

    Returns
    -------
    list
        For each of ``starts`` the number of tokens before the place, and the model's token there; None if the trunk is followed
        for ``within`` tokens, or to its end.
    """
    found: list[tuple[int, int] | None] = [None] * len(starts)
    chosen: dict[tuple[int, int], int] = {}
    for step in range(within):
        at = {
            which: (trunk, start + step)
            for which, (trunk, start) in enumerate(starts)
            if found[which] is None and start + step < len(trunks[trunk])
        }
        new = sorted(set(at.values()) - chosen.keys())
        if new:
            chosen.update(zip(new, choose(new), strict=True))
        for which, (trunk, place) in at.items():
            if chosen[trunk, place] != trunks[trunk][place]:
                found[which] = place, chosen[trunk, place]
    return found


@torch.inference_mode()
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
    progress
        Called with a number of prompts when all their responses are there or being decoded, and the next prompts are due.

    Returns
    -------
    dict
        (row of ``prompts``, depth) -> the response after the prefix.
    """
    sequences = [prompt + trunk for prompt, trunk in zip(prompts, trunks, strict=True)]
    width, head = most_rows(Shape.of(model.config)), model.get_output_embeddings()
    leaves: dict[tuple[int, int], tuple[int, int] | None] = {}  # (row of prompts, depth) -> where the trunk is left
    branches: dict[tuple[int, int], Response] = {}  # (row of prompts, tokens of the trunk) -> what follows them

    def begun() -> Iterator[Batch]:
        for batch in chunks(sequences, model=model):
            packed = pack([sequences[i] for i in batch], model.device)
            store, output = _read(model.get_decoder(), packed)
            states = output.last_hidden_state[0]
            place_of = {i: packed.places[place] for place, i in enumerate(batch)}

            def choose(wanted: list[tuple[int, int]], states=states, place_of=place_of) -> list[int]:
                last = torch.stack([place_of[i][len(prompts[i]) + tokens - 1] for i, tokens in wanted])
                return _finite(head(states[last.to(states.device)])).max(-1).indices.tolist()

            reached = {i: len(trunks[i]) - (trunks[i][-1] == eos) for i in batch}
            starts = [(i, depth) for i in batch for depth in depths if depth < reached[i]]
            depths_of: dict[tuple[int, int], list[int]] = {}
            for (i, depth), left in zip(starts, leaving_places(choose, trunks, starts, within), strict=True):
                leaves[i, depth] = left
                if left is not None:
                    leave, token = left
                    branches[i, leave] = begin(token, eos)
                    depths_of.setdefault((i, leave), []).append(depth)
            open_branches = [key for key in depths_of if not branches[key].ended]
            for first in range(0, len(open_branches), width):
                keys = open_branches[first : first + width]
                rows = [branches[key] for key in keys]
                more = _until_decided(rows, keys, [depths_of[key] for key in keys], trunks, within, after, refused)
                places = [place_of[i][: len(prompts[i]) + leave] for i, leave in keys]
                yield Batch(store.branch(places), rows, more)
            progress(len(batch))

    extend(model, begun(), eos, beside=width)
    result = {}
    for (i, depth), left in leaves.items():
        if left is None:
            ran = trunks[i][depth : depth + within]
            result[i, depth] = Response([token for token in ran if token != eos], eos in ran)
        else:
            branch = branches[i, left[0]]
            tokens = trunks[i][depth : left[0]] + branch.tokens
            # A branch may have been decoded further for another depth's sake.
            kept = within + after if refused(tokens[:within]) else within
            result[i, depth] = Response(tokens[:kept], branch.ended and len(tokens) <= kept)
    return result


def _until_decided(rows, keys, starts, trunks, within, after, refused) -> Callable[[int], bool]:
    """For a :class:`Batch`: decode ``within`` tokens, and ``after`` more where a response through the branch refuses by then."""

    @cache
    def refuses(row: int) -> bool:
        (i, leave), tokens = keys[row], rows[row].tokens[:within]
        return any(refused((trunks[i][depth:leave] + tokens)[:within]) for depth in starts[row])

    def wants_more(row: int) -> bool:
        length = len(rows[row].tokens)
        return length < within or (length < within + after and refuses(row))

    return wants_more
