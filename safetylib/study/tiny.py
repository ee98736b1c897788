"""Random two-layer models of the study's architectures with a byte tokenizer: seconds instead of minutes, for unit tests;
never a result."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from safetylib.study import attention

_TEMPLATE = (
    "<|start|>system\nAnswer.<|end|>{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
# What makes each family differ from the others: key heads, widths of heads, windows, dropout.
FAMILIES: dict[str, dict] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "gemma": {"num_key_value_heads": 1, "head_dim": 32, "pad_token_id": None},
    "phi": {"resid_pdrop": 0.1},
    "gemma3_text": {
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
        "pad_token_id": None,
    },
}


def byte_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, a start and an end token, and a chat template with a system prompt, or none (a base model's)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", "<|start|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|start|>")
    if chat:
        tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_model(family: str, dtype: torch.dtype, chat: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The family's model (always the same random weights) and its tokenizer.

    Raises
    ------
    ValueError
        Unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"no tiny model of family {family!r}; known: {', '.join(FAMILIES)}")
    tokenizer = byte_tokenizer(chat)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_SIZES,
        **FAMILIES[family],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    return model.to(dtype).eval(), tokenizer


def tiny_llama(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The one that most tests use."""
    return tiny_model("llama", dtype)
