"""Attention for sequences that share their beginning: one mechanism for training, prefilling, decoding and judging.

Sequences are *packed*: laid end to end in one row, after a single copy of the tokens that all of them begin with (the
chat template's system prompt, a judge's rubric). Causal attention makes this exact: what a shared token computes does
not depend on what follows it. Nothing is padded beyond a multiple of eight, equal lengths are multiplied together, and
grouped queries are multiplied without repeating their keys. It is registered with transformers under one name, so that
every architecture that uses transformers' attention interface gets it without a line of model code.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch
from transformers import AttentionInterface

NAME = "safetylib"
_MULTIPLE = 8
_ROOM = 32
_BLOCK = 96


@dataclass(frozen=True)
class Packing:
    """Where sequences lie in the packed row: ``prefix`` shared tokens, then ``groups`` of (count, own length)."""

    prefix: int
    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Packed:
    """Sequences of token ids, packed.

    Attributes
    ----------
    input_ids, position_ids
        Shape (1, N).
    packing
        The layout, handed to the attention function.
    places
        For every sequence, in the caller's order, the places of its tokens in the row (1-D tensors).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    packing: Packing
    places: list[torch.Tensor]


def pack(sequences: list[list[int]], device: torch.device | str = "cpu") -> Packed:
    """Pack sequences of token ids; each keeps at least one token of its own.

    Raises
    ------
    ValueError
        No sequence, or an empty one.
    """
    if not sequences or not all(sequences):
        raise ValueError("pack needs at least one sequence, and none may be empty")
    shortest, reference = min(map(len, sequences)), sequences[0]
    prefix = 0
    while prefix < shortest - 1 and all(sequence[prefix] == reference[prefix] for sequence in sequences):
        prefix += 1
    padded = [-(-(len(sequence) - prefix) // _MULTIPLE) * _MULTIPLE for sequence in sequences]
    order = sorted(range(len(sequences)), key=padded.__getitem__)
    ids, positions = list(reference[:prefix]), list(range(prefix))
    places: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    for index in order:
        own, start = sequences[index][prefix:], len(ids)
        places[index] = torch.cat([torch.arange(prefix), torch.arange(start, start + len(own))])
        ids += own + [own[-1]] * (padded[index] - len(own))
        positions += range(prefix, prefix + padded[index])
    groups = tuple((len(list(members)), length) for length, members in groupby(padded[index] for index in order))
    return Packed(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        Packing(prefix, groups),
        places,
    )


class KeyValueStore:
    """Keys and values of a packed forward pass, kept for branching (the part of a cache that transformers calls)."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_, **__
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.layers.append((keys, values))
        return keys, values

    def branch(self, places: list[torch.Tensor]) -> RaggedCache:
        """A cache with one row a list of places in the packed row; cheapest if rows of similar length are neighbours."""
        (_, heads, count, _), device = self.layers[0][0].shape, self.layers[0][0].device
        indices = []
        for first in range(0, len(places), _BLOCK):
            block = places[first : first + _BLOCK]
            index = torch.zeros(len(block), max(map(len, block)) + _ROOM, dtype=torch.long)
            for row, place in enumerate(block):
                index[row, : len(place)] = place
            indices.append((index[:, None] + count * torch.arange(heads)[:, None]).to(device))

        def gather(packed: torch.Tensor) -> list[torch.Tensor]:
            states = packed.reshape(heads * count, -1)
            return [states.index_select(0, index.flatten()).view(*index.shape, -1) for index in indices]

        lengths = torch.tensor([len(place) for place in places], device=device)
        return RaggedCache([(gather(keys), gather(values)) for keys, values in self.layers], lengths)


class RaggedCache:
    """Keys and values of rows of different lengths; every decoding step writes one token at each row's own end.

    Consecutive rows lie in *blocks*, each as long as its own longest row and some room, so that a long row costs short ones
    elsewhere nothing. The whole of a block is handed to the attention, what lies behind a row's end included (it is not visible):
    a slice of it would be copied by every matrix product. A block grows by a few tokens at a time.

    Attributes
    ----------
    layers
        Per layer, the keys and the values of every block, of shape (rows of the block, key heads, capacity, head dimension).
    lengths
        Tokens held per row, shape (rows,). The model's forward pass writes; the decoder advances the lengths.
    """

    def __init__(self, layers: list[tuple[list[torch.Tensor], list[torch.Tensor]]], lengths: torch.Tensor) -> None:
        self.layers, self.lengths = layers, lengths
        self._slots: list[torch.Tensor] = []
        self._masks: dict[int | None, list[torch.Tensor]] = {}

    @property
    def sizes(self) -> list[int]:
        """Rows of every block."""
        return [len(keys) for keys in self.layers[0][0]]

    def make_room(self) -> None:
        """Before a forward pass: one more token fits into every row, and what is the same for all layers is noted."""
        self._slots, self._masks = [], {}
        for block, ends in enumerate(self.lengths.split(self.sizes)):
            if int(ends.max()) == self.layers[0][0][block].shape[2]:
                for layer in self.layers:
                    for held in layer:
                        held[block] = torch.nn.functional.pad(held[block], (0, 0, 0, _ROOM))
            rows, heads, capacity, _ = self.layers[0][0][block].shape
            first = torch.arange(0, rows * heads * capacity, capacity, device=ends.device)
            self._slots.append(first + ends.repeat_interleave(heads))

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_, **__
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        for blocks, new in zip(self.layers[layer], (keys, values), strict=True):
            for held, slots, own in zip(blocks, self._slots, new.split(self.sizes), strict=True):
                held.view(-1, held.shape[-1])[slots] = own.flatten(0, 2)
        return self.layers[layer]

    def masks(self, window: int | None, dtype: torch.dtype) -> list[torch.Tensor]:
        """For every block what to add to the scores of the next token: minus infinity behind a row's end, and before its window."""
        if window not in self._masks:
            places, ends = torch.arange(int(self.lengths.max()) + 1, device=self.lengths.device), self.lengths[:, None]
            hidden = places > ends
            if window is not None:
                hidden |= places <= ends - window
            self._masks[window] = list(_mask(hidden, dtype)[:, None, None, None].split(self.sizes))
        return self._masks[window]

    def get_seq_length(self, layer: int = 0) -> int:
        return int(self.lengths.max())

    @torch.inference_mode()
    def keep(self, going_on: list[bool]) -> list[int]:
        """Keep the rows that go on, and say where each of those that are left stood before."""
        starts = [0, *accumulate(self.sizes)]
        orders = [closed_up(going_on[start:stop]) for start, stop in pairwise(starts)]

        def kept(states: torch.Tensor, order: list[int]) -> torch.Tensor:
            moved = [row for row, origin in enumerate(order) if origin != row]
            if moved:
                states[moved] = states[[order[row] for row in moved]]
            return states[: len(order)]

        for layer in self.layers:
            for blocks in layer:
                blocks[:] = [kept(states, order) for states, order in zip(blocks, orders, strict=True) if order]
        places = [start + row for start, order in zip(starts, orders, strict=False) for row in order]
        self.lengths = self.lengths[places]
        return places


def closed_up(going_on: list[bool]) -> list[int]:
    """Places that go on, in an order in which those at the end fill the gaps of those that do not: few rows move."""
    count = sum(going_on)
    late = (place for place in range(count, len(going_on)) if going_on[place])
    return [place if going_on[place] else next(late) for place in range(count)]


def _mask(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What to add to scores: minus infinity where a key is hidden. Adding is much faster than filling."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


def _scores_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores of float16 states are float32: some models' exceed what float16 holds."""
    return torch.float32 if dtype == torch.float16 else dtype


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float, seen: int
) -> torch.Tensor:
    """Softmax attention with grouped queries over the first ``seen`` keys, to the last of which a mask is added.

    ``query`` (B, H, T, D); ``key`` and ``value`` (B, K, S, D) with K dividing H, and S smaller than ``seen`` only where the mask
    hides what is missing; ``mask`` (T, M) or (B, 1, 1, 1, M) with M at most ``seen``. Returns (B, T, H, D).
    """
    B, H, T, D = query.shape
    K, S = key.shape[1], key.shape[2]
    wide = mask.dtype
    scores = (query.to(wide) * scaling).reshape(B, K, -1, D) @ key.transpose(-1, -2).to(wide)
    scores = scores.view(B, K, H // K, T, S)[..., :seen]
    if S < seen:
        scores = torch.nn.functional.pad(scores, (0, seen - S))
    before = seen - mask.shape[-1]
    if scores.requires_grad:  # a backward pass is the slower for a change in place
        scores = scores + torch.nn.functional.pad(mask, (before, 0))
    else:
        scores[..., before:] += mask
    # The sum runs over what is seen whatever S: how many numbers are added decides how it is rounded.
    weights = scores.softmax(-1).to(value.dtype)
    if S != seen:
        weights = torch.nn.functional.pad(weights, (0, S - seen))
    weights = weights.reshape(B, K, H // K * T, S)
    return (weights @ value).view(B, H, T, D).transpose(1, 2)


def _causal(own: int, before: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """The mask of ``own`` tokens that stand after ``before`` others: (own, own), as all of these are seen; with a ``window``,
    of so many tokens, (own, before + own)."""
    hidden = torch.ones(own, before + own, dtype=torch.bool, device=like.device).triu(before + 1)
    if window is None:
        hidden = hidden[:, before:]
    else:
        hidden |= torch.ones_like(hidden).tril(before - window)
    return _mask(hidden, _scores_dtype(like.dtype))


def _packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    P, (_, H, _, D) = packing.prefix, query.shape
    parts = []
    if P:
        q, k, v = (states[:, :, :P] for states in (query, key, value))
        parts.append(_attend(q, k, v, _causal(P, 0, window, q), scaling, P))
    start = P
    for count, length in packing.groups:
        stop = start + count * length

        def split(states: torch.Tensor, start: int = start, stop: int = stop, count: int = count) -> torch.Tensor:
            return states[0, :, start:stop].unflatten(1, (count, -1)).transpose(0, 1)

        shared_key, shared_value = (states[:, :, :P].expand(count, -1, -1, -1) for states in (key, value))
        mixed = _attend(
            split(query),
            torch.cat([shared_key, split(key)], 2),
            torch.cat([shared_value, split(value)], 2),
            _causal(length, P, window, query),
            scaling,
            P + length,
        )
        parts.append(mixed.reshape(1, count * length, H, D))
        start = stop
    return torch.cat(parts, 1)


def _ragged_attention(
    query: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    rows: RaggedCache,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    masks = rows.masks(window, _scores_dtype(query.dtype))
    blocks = zip(query.split(rows.sizes), keys, values, masks, strict=True)
    return torch.cat([_attend(*block, scaling, masks[0].shape[-1]) for block in blocks])


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | list[torch.Tensor],
    value: torch.Tensor | list[torch.Tensor],
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    rows: RaggedCache | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention over a packed row (``packing``), or of one token a row over a ragged cache (``rows``; ``key`` and ``value``
    are then those of all its blocks).

    Layers with a ``sliding_window`` see that many tokens, their own included.

    Raises
    ------
    ValueError
        Soft-capped attention, which would silently be computed as plain attention.
    """
    if softcap is not None:
        raise ValueError("safetylib's attention does not cover soft caps")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packing is not None:
        return _packed_attention(query, key, value, packing, scaling, sliding_window), None
    if rows is None:
        raise ValueError("safetylib's attention needs `packing` or `rows`; use the model through pack() or decode()")
    return _ragged_attention(query, key, value, rows, scaling, sliding_window), None


AttentionInterface.register(NAME, attention)
