"""Tiny models that say something."""

import torch

from safetylib.study.tiny import tiny_model


def lively(family, chat=True):
    """A tiny model whose attention is sharp, whose answers vary, and which hardly ever ends them by itself."""
    model, tokenizer = tiny_model(family, torch.float32, chat)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0
    return model, tokenizer
