"""Linear layers whose weights lie as oneDNN multiplies them, for decoding on a CPU.

A plain linear layer has its weights rearranged at every call. That is little beside a long batch's products and a fifth
of a decoding step; a model that only decodes is rearranged once. Nothing is computed otherwise: outputs are the same to
the bit in bfloat16, where a test holds them beside the plain layers'.

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
    linear = torch.nn.Linear(16, 16).to(dtype)
    inputs = torch.ones(2, 16, dtype=dtype)
    try:
        with torch.inference_mode():
            return torch.allclose(PrepackedLinear(linear)(inputs), linear(inputs), atol=1e-2)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def prepack(model: torch.nn.Module) -> torch.nn.Module:
    """The model, in place, with its linear layers rearranged; untouched on a GPU or where that does not work.

    For models that are trained no further: rearranged layers have no gradients and are not saved.
    """
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is torch.nn.Linear and layer.weight.device.type == "cpu" and _works(layer.weight.dtype):
                setattr(parent, name, PrepackedLinear(layer))
    return model
