"""The embedded model's first load: transformers reading the GGUF file against the book's conversion, which is done once."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from benchmarks.timing import Comparison, compare
from safetylib.study import assets, models


def first() -> Comparison:
    """Ours also writes what it has read as safetensors."""
    gguf = assets.fetch(assets.SMOLLM2)

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            assets._convert(gguf, Path(folder))

    return compare("first load of the embedded model", "transformers, GGUF", lambda: _through_transformers(gguf), ours)


def later() -> Comparison:
    """Every further load, digests checked and weights rounded to 4 bits, against the GGUF file read anew."""
    gguf = assets.fetch(assets.SMOLLM2)
    return compare(
        "later loads of it, in 4 bits",
        "transformers, GGUF",
        lambda: _through_transformers(gguf),
        lambda: models.load(assets.SMOLLM2.name),
    )


def _through_transformers(gguf: Path) -> None:
    with models.quiet():
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
        )


if __name__ == "__main__":
    first()
    later()
