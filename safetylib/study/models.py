"""Loading a model in 4 bits, putting adapters on it, and what the device can do.

"4-bit" is meant exactly: weights are rounded to NF4 with double quantisation by bitsandbytes. On a GPU they stay packed;
on a CPU, where unpacking at every step costs more than the memory is worth, they are unpacked once into bfloat16 (or
float32) matrices that hold the same NF4-rounded values.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from safetylib.study import assets, attention
from safetylib.study.presets import Lora

TINY = "tiny-random-llama"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence libraries' progress bars, notices and warnings while they load (they would end up on the book's pages)."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(on: torch.device) -> torch.dtype:
    """bfloat16 where the hardware has it (a T4 only emulates it: float16 there)."""
    if on.type == "cuda" and torch.cuda.get_device_capability(on) < (8, 0):
        return torch.float16
    return torch.bfloat16


def locate(name: str) -> Path | None:
    """The folder of a model known to :func:`load`, fetched and verified; None for the one made in memory for tests.

    Raises
    ------
    ValueError
        Unknown name.
    """
    if name == TINY:
        return None
    folder = assets.embedded_model() if name == assets.SMOLLM2.name else Path(name)
    if not (folder / "config.json").is_file():
        raise ValueError(f"unknown model {name!r}: neither {assets.SMOLLM2.name} nor a folder with a config.json")
    return folder


def load(name: str, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, NF4-rounded with double quantisation, and its tokenizer.

    Parameters
    ----------
    name
        ``SmolLM2-135M-Instruct`` (embedded), ``tiny-random-llama`` (tests), or a folder with a saved model.
    dtype
        Compute dtype; by default what the device does best.

    Raises
    ------
    ValueError
        Unknown name, or a model without a chat template.
    """
    on, folder = device(), locate(name)
    dtype = dtype or compute_dtype(on)
    if folder is None:
        from safetylib.study.tiny import tiny_llama

        return tiny_llama(dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=quantization,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
        )
        if on.type == "cpu":
            # Before any forward pass: bitsandbytes repacks its weights at the first one.
            model = model.dequantize().to(dtype)
    if tokenizer.chat_template is None:
        raise ValueError(f"{name} has no chat template; the study speaks to chat models only")
    return model.eval(), tokenizer


def with_adapters(base: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """The base model (shared, frozen) with fresh adapters in its compute dtype; ``remove_adapters`` undoes it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM")
    with quiet():
        return get_peft_model(base, config, autocast_adapter_dtype=False)


def remove_adapters(model: PeftModel) -> PreTrainedModel:
    """The untouched base model back."""
    return model.unload()


def merged(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """A copy of the base with a saved adapter merged into its weights: decoding then pays nothing for the adapter."""
    with quiet():
        return (
            PeftModel.from_pretrained(copy.deepcopy(base), adapter, autocast_adapter_dtype=False)
            .merge_and_unload()
            .eval()
        )


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt in the model's own chat template, up to where the response begins."""
    message = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
