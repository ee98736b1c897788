r"""Members of an ensemble answer together: adapters on one base share every product with its weights.

With its adapter unmerged, a layer of member w computes :math:`Wx + s\,B_w A_w x`. Here all members' A lie below one
another in one matrix and all their B side by side in another; between the two products, a row's coordinates that belong to
other members are set to zero. So a batch may hold rows of any members, and in decoding width costs the rows that it adds to a
batch, not another pass over the base's weights; prompts are read once a member. Up to rounding the answers are those of each member merged and decoded by itself
(:func:`safetylib.study.models.merged`), which is how the study measures members; a test compares the two in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import load_peft_weights
from transformers import PreTrainedModel

from safetylib.study import generate, models
from safetylib.study.attention import RaggedCache
from safetylib.study.generate import Response
from safetylib.study.prepacked import prepack
from safetylib.study.registry import Shape


@dataclass
class _Rows:
    """Which members the rows of the next forward pass belong to: ``own`` (rows, 1, members * rank) holds the adapters' scale
    at a row's own coordinates, and zero elsewhere."""

    own: torch.Tensor


class _SharedLinear(torch.nn.Module):
    """A linear layer with every member's adapter on it; takes (rows, tokens, in features)."""

    def __init__(
        self, linear: torch.nn.Module, downs: list[torch.Tensor], ups: list[torch.Tensor], rows: _Rows
    ) -> None:
        super().__init__()
        self.linear, self.rows, self.down, self.up = linear, rows, torch.cat(downs), torch.cat(ups, dim=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inner = torch.nn.functional.linear(inputs, self.down) * self.rows.own
        return self.linear(inputs) + torch.nn.functional.linear(inner, self.up)


class _SharedCache(RaggedCache):
    """The rows of several caches, which stand for several members, in one; rows that leave take their member with them."""

    def __init__(self, caches: list[RaggedCache], rows: _Rows, own: torch.Tensor) -> None:
        capacity = max(cache.layers[0][0].shape[2] for cache in caches)

        def joined(parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, capacity - part.shape[2])) for part in parts])

        layers = [
            (joined([keys for keys, _ in layer]), joined([values for _, values in layer]))
            for layer in zip(*(cache.layers for cache in caches), strict=True)
        ]
        super().__init__(layers, torch.cat([cache.lengths for cache in caches]))
        self.rows, rows.own = rows, own

    def keep(self, order: list[int]) -> None:
        super().keep(order)
        self.rows.own = self.rows.own[order]


class Ensemble:
    """Adapters on one base model, for inference.

    Parameters
    ----------
    base
        The untuned model; it is shared, not changed.
    adapters
        Folders with saved adapters of one rank and scale.

    Raises
    ------
    ValueError
        No adapter, adapters of different rank, scale or layers, or other than plain ones.
    """

    def __init__(self, base: PreTrainedModel, adapters: list[Path]) -> None:
        configs = [LoraConfig.from_pretrained(folder) for folder in adapters]
        weights = [load_peft_weights(folder, device=str(base.device)) for folder in adapters]
        for config, found in zip(configs, weights, strict=True):
            odd = [key for key in found if not key.endswith(("lora_A.weight", "lora_B.weight"))]
            if odd or config.use_rslora or config.use_dora or config.rank_pattern or config.alpha_pattern:
                raise ValueError(
                    "members that answer together need plain adapters: two matrices a layer, one rank and scale for all"
                )
        if (
            len({(config.r, config.lora_alpha, *sorted(found)) for config, found in zip(configs, weights, strict=True)})
            != 1
        ):
            raise ValueError("members that answer together need adapters, all of one rank, scale and set of layers")
        self.width, self.rank, scale = len(adapters), configs[0].r, configs[0].lora_alpha / configs[0].r
        self.rows, self.model = _Rows(torch.empty(0)), prepack(models.sharing(base))
        # Row w: the coordinates of member w.
        self.own = scale * torch.eye(self.width, dtype=base.dtype, device=base.device).repeat_interleave(
            self.rank, dim=1
        )
        for name in sorted({key.rpartition(".lora_")[0] for key in weights[0]}):
            parent, _, attribute = name.removeprefix("base_model.model.").rpartition(".")
            layer = getattr(self.model.get_submodule(parent), attribute)
            downs, ups = ([found[f"{name}.lora_{side}.weight"].to(base.dtype) for found in weights] for side in "AB")
            setattr(self.model.get_submodule(parent), attribute, _SharedLinear(layer, downs, ups, self.rows))

    def answer(self, prompts: list[list[int]], limit: int, eos: int) -> list[list[Response]]:
        """Greedy responses of at most ``limit`` tokens: for every member, one to every prompt (token ids)."""
        found = [[Response([], True)] * len(prompts) for _ in range(self.width)]
        most = max(1, generate.most_rows(Shape.of(self.model.config)) // self.width)
        for batch in generate.chunks(prompts, rows=most, model=self.model):
            caches, decoding, own = [], [], []
            for member, responses in enumerate(found):
                self.rows.own = self.own[None, member : member + 1]
                packed, store, logits = generate.prefill(
                    self.model, [prompts[i] for i in batch], [[len(prompts[i]) - 1] for i in batch]
                )
                begun = [generate.begin(int(row.argmax()), eos) for row in logits]
                for index, response in zip(batch, begun, strict=True):
                    responses[index] = response
                going_on = [place for place, response in enumerate(begun) if not response.ended]
                if going_on:
                    caches.append(store.branch([packed.places[place] for place in going_on]))
                    decoding += [begun[place] for place in going_on]
                    own += [member] * len(going_on)
            if caches:
                cache = _SharedCache(caches, self.rows, self.own[own][:, None])
                caches.clear()  # their keys and values are in the shared one
                generate.extend(self.model, [generate.Batch.up_to(limit, cache, decoding)], eos)
        return found
