"""Linear layers whose weights lie as oneDNN multiplies them, for decoding on a CPU.

A plain linear layer has its weights rearranged at every call. That is little beside a long batch's products and a fifth
of a decoding step; a model that only decodes is rearranged once. Nothing is computed otherwise: of contiguous inputs in
bfloat16 the outputs are the same to the bit, and a test holds them beside the plain layers'.

The two operators are those that torch's own compiler calls. They are no public interface, so :func:`prepack` looks
whether they are there and work, and leaves a model as it is where they do not.
"""

from __future__ import annotations

from functools import cache

import torch

_ROWS = 64  #: the batch for which oneDNN chooses the arrangement; every other one is multiplied, too


class PrepackedLinear(torch.nn.Module):
    """A linear layer for inference; takes (..., in features), gives (..., out features)."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, multiplies rearranged weights of a dtype."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.utils.skip_init(torch.nn.Linear, 96, 160, dtype=dtype)
    try:
        with torch.inference_mode():
            for parameter in linear.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
            packed = PrepackedLinear(linear)
            batches = [torch.randn(rows, 1, 96, generator=generator).to(dtype) for rows in (1, 65, 200)]
            return all(torch.allclose(packed(batch), linear(batch), rtol=2e-2, atol=2e-2) for batch in batches)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def prepack(model: torch.nn.Module) -> torch.nn.Module:
    """The model, in place, with its linear layers rearranged; untouched on a GPU or where that does not work.

    For models that are trained no further: rearranged layers have no gradients, are not saved, and are not copied.
    """
    for parent in [module for module in model.modules() if type(module) is not torch.nn.Linear]:
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and layer.weight.device.type == "cpu" and _works(layer.weight.dtype):
                setattr(parent, name, PrepackedLinear(layer))
    return model
