"""Attention for sequences that share their beginning: one mechanism for training, prefilling, decoding and judging.

Sequences are *packed*: laid end to end in one row, after a single copy of the tokens that all of them begin with (the
chat template's system prompt, a judge's rubric). Causal attention makes this exact: what a shared token computes does
not depend on what follows it. Nothing is padded beyond a multiple of eight, equal lengths are multiplied together, and
grouped queries are multiplied without repeating their keys. It is registered with transformers under one name, so that
every architecture that uses transformers' attention interface gets it without a line of model code.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import AttentionInterface

NAME = "safetylib"
_MULTIPLE = 8
_ROOM = 16


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


def shared_tokens(sequences: list[list[int]]) -> int:
    """Tokens that all sequences begin with, such that each keeps at least one of its own.

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
    return prefix


def pack(sequences: list[list[int]], device: torch.device | str = "cpu", prefix: int | None = None) -> Packed:
    """Pack sequences of token ids; each keeps at least one token of its own.

    Parameters
    ----------
    prefix
        How many of the tokens that all begin with are laid down once; by default, all of them.

    Raises
    ------
    ValueError
        No sequence, or an empty one, or a prefix that they do not share.
    """
    most, reference = shared_tokens(sequences), sequences[0]
    prefix = most if prefix is None else prefix
    if prefix > most:
        raise ValueError(f"the sequences share {most} tokens, not {prefix}; give pack a shorter prefix, or none")
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
    """Keys and values of a packed forward pass, kept for branching (the part of a cache that transformers calls).

    Parameters
    ----------
    before
        Per layer, keys and values of a prefix that an earlier pass has read: the packed row goes on after it.
    """

    def __init__(self, before: list[tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._before = before

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_, **__
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._before is not None:
            read = self._before[layer]
            keys, values = torch.cat([read[0], keys], 2), torch.cat([read[1], values], 2)
        self.layers.append((keys, values))
        return keys, values

    def beginning(self, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer, a copy of the keys and values of the row's first tokens."""
        return [(keys[:, :, :tokens].clone(), values[:, :, :tokens].clone()) for keys, values in self.layers]

    def branch(self, places: list[torch.Tensor]) -> RaggedCache:
        """A cache with one row a list of places in the packed row."""
        (_, heads, count, _), device = self.layers[0][0].shape, self.layers[0][0].device
        lengths = torch.tensor([len(place) for place in places])
        index = torch.zeros(len(places), int(lengths.max()) + _ROOM, dtype=torch.long)
        for row, place in enumerate(places):
            index[row, : len(place)] = place
        index = (index[:, None] + count * torch.arange(heads)[:, None]).to(device)

        def gather(packed: torch.Tensor) -> torch.Tensor:
            return packed.reshape(heads * count, -1).index_select(0, index.flatten()).view(*index.shape, -1)

        return RaggedCache([(gather(keys), gather(values)) for keys, values in self.layers], lengths.to(device))


class RaggedCache:
    """Keys and values of rows of different lengths; every decoding step writes one token at each row's own end.

    The whole of it is handed to the attention, what lies behind a row's end included (it is not visible): a slice of it would
    be copied by every matrix product. It grows by a few tokens at a time.

    Attributes
    ----------
    layers
        Per layer, keys and values of shape (rows, key heads, capacity, head dimension).
    lengths
        Tokens held per row, shape (rows,). The model's forward pass writes; the decoder advances the lengths.
    """

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], lengths: torch.Tensor) -> None:
        self.layers, self.lengths = layers, lengths
        self._slots = torch.empty(0)
        self._masks: dict[int | None, torch.Tensor] = {}

    def make_room(self) -> None:
        """Before a forward pass: one more token fits into every row, and what is the same for all layers is noted."""
        if int(self.lengths.max()) == self.layers[0][0].shape[2]:
            for place, layer in enumerate(self.layers):  # one after another, so that no two copies of all are held
                self.layers[place] = tuple(torch.nn.functional.pad(held, (0, 0, 0, _ROOM)) for held in layer)
        rows, heads, capacity, _ = self.layers[0][0].shape
        first = torch.arange(0, rows * heads * capacity, capacity, device=self.lengths.device)
        self._slots, self._masks = first + self.lengths.repeat_interleave(heads), {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_, **__
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for held, new in zip(self.layers[layer], (keys, values), strict=True):
            held.view(-1, held.shape[-1])[self._slots] = new.flatten(0, 2)
        return self.layers[layer]

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores of the next token: minus infinity behind a row's end, and before its window."""
        if window not in self._masks:
            places, ends = torch.arange(int(self.lengths.max()) + 1, device=self.lengths.device), self.lengths[:, None]
            hidden = places > ends
            if window is not None:
                hidden |= places <= ends - window
            self._masks[window] = _mask(hidden, dtype)[:, None, None, None]
        return self._masks[window]

    def lengthen(self) -> None:
        """After a forward pass: every row holds one token more."""
        self.lengths = self.lengths + 1

    def get_seq_length(self, layer: int = 0) -> int:
        return int(self.lengths.max())

    @torch.inference_mode()
    def keep(self, order: list[int]) -> None:
        """Keep these rows, in this order. Rows that keep their place are not copied, so it is best to move few of them."""
        pairs = [(row, origin) for row, origin in enumerate(order) if origin != row]
        moved, origins = torch.tensor(pairs, dtype=torch.long, device=self.lengths.device).reshape(-1, 2).unbind(1)

        def kept(held: torch.Tensor) -> torch.Tensor:
            held[moved] = held[origins]
            return held[: len(order)]

        self.layers = [(kept(keys), kept(values)) for keys, values in self.layers]
        self.lengths = kept(self.lengths)


class SeveralCaches:
    """Caches whose rows are decoded in one forward pass: linear layers see all rows at once, the attention of a row its own
    cache alone, so that what a row computes there does not depend on the other caches."""

    def __init__(self, caches: list[RaggedCache]) -> None:
        self.caches = caches

    @property
    def counts(self) -> list[int]:
        """Rows of each cache."""
        return [len(cache.lengths) for cache in self.caches]

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens held per row."""
        return torch.cat([cache.lengths for cache in self.caches])

    def make_room(self) -> None:
        for cache in self.caches:
            cache.make_room()

    def lengthen(self) -> None:
        for cache in self.caches:
            cache.lengthen()

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_, **__
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Each cache's keys, and its values: the model hands them on to the attention as they are."""
        new = zip(self.caches, keys.split(self.counts), values.split(self.counts), strict=True)
        held = [cache.update(own_keys, own_values, layer) for cache, own_keys, own_values in new]
        return tuple(own_keys for own_keys, _ in held), tuple(own_values for _, own_values in held)

    def get_seq_length(self, layer: int = 0) -> int:
        return max(cache.get_seq_length(layer) for cache in self.caches)


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

    ``query`` (B, H, T, D); ``key`` and ``value`` (B, K, S, D) with K dividing H; ``mask`` (T, M) or (B, 1, 1, 1, M) with M at most
    ``seen``, in the scores' dtype. Returns (B, T, H, D).
    """
    B, H, T, D = query.shape
    K, S, wide = key.shape[1], key.shape[2], mask.dtype
    scores = (query.to(wide) * scaling).reshape(B, K, -1, D) @ key.transpose(-1, -2).to(wide)
    scores = scores.view(B, K, H // K, T, S)[..., :seen]
    before = seen - mask.shape[-1]
    if scores.requires_grad:  # a backward pass is the slower for a change in place
        scores = scores + torch.nn.functional.pad(mask, (before, 0))
    else:
        scores[..., before:] += mask
    # The sum runs over what is seen whatever S: how many numbers are added decides how it is rounded.
    weights = scores.softmax(-1).to(value.dtype)
    if seen < S:
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
    P, (_, H, T, D) = packing.prefix, query.shape
    read = key.shape[2] - T  # keys of a prefix that an earlier pass has read: all of it, or none
    parts = []
    if P and not read:
        q, k, v = (states[:, :, :P] for states in (query, key, value))
        parts.append(_attend(q, k, v, _causal(P, 0, window, q), scaling, P))
    own_key, own_value, start = key[:, :, read:], value[:, :, read:], P - read
    for count, length in packing.groups:
        stop = start + count * length

        def split(states: torch.Tensor, start: int = start, stop: int = stop, count: int = count) -> torch.Tensor:
            return states[0, :, start:stop].unflatten(1, (count, -1)).transpose(0, 1)

        shared_key, shared_value = (states[:, :, :P].expand(count, -1, -1, -1) for states in (key, value))
        mixed = _attend(
            split(query),
            torch.cat([shared_key, split(own_key)], 2),
            torch.cat([shared_value, split(own_value)], 2),
            _causal(length, P, window, query),
            scaling,
            P + length,
        )
        parts.append(mixed.reshape(1, count * length, H, D))
        start = stop
    return torch.cat(parts, 1)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    rows: RaggedCache | SeveralCaches | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention over a packed row (``packing``), or of one token a row over ragged caches (``rows``).

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
        raise ValueError(
            "safetylib's attention needs `packing` or `rows`; use the model through safetylib.study.generate"
        )
    if isinstance(rows, SeveralCaches):
        own = zip(rows.caches, query.split(rows.counts), key, value, strict=True)
        return torch.cat([_attend_rows(*each, scaling, sliding_window) for each in own]), None
    return _attend_rows(rows, query, key, value, scaling, sliding_window), None


def _attend_rows(
    rows: RaggedCache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    mask = rows.mask(window, _scores_dtype(query.dtype))
    return _attend(query, key, value, mask, scaling, mask.shape[-1])


AttentionInterface.register(NAME, attention)
