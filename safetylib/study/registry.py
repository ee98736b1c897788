"""The models that the study knows by name: where they come from, under which licence, how they are spoken to, how large
they are. Facts only; nothing is imported or downloaded here.

Where the paper's summary says no more than "Gemma 2B" or "Qwen 2.5 1.5B", the model published under that bare name is
meant: the base model, not an instruction-tuned one. The judge follows a rubric, which is an instruction, so "Llama 3.2 1B"
is read as its instruction-tuned version. Base models have no chat format of their own and get a plain one.
Hub revisions are not written here: they are resolved and recorded at the first download (:mod:`safetylib.study.hub`).
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co/"

# Families whose activations do not fit into float16: devices without bfloat16 compute in float32.
BEYOND_FLOAT16 = ("gemma3_text",)


@dataclass(frozen=True)
class Shape:
    """What a transformer's memory follows from.

    Parameters
    ----------
    layers, hidden, feed_forward, vocabulary
        Numbers of layers, and widths.
    heads, key_heads, head_size
        Query heads, key (and value) heads, and the width of one.
    feed_forward_matrices
        3 with a gate, 2 without.
    tied
        The output layer is the embedding.
    """

    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    heads: int
    key_heads: int
    head_size: int
    feed_forward_matrices: int = 3
    tied: bool = True

    @classmethod
    def of(cls, config) -> Shape:
        """The shape of a model with this transformers configuration."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            feed_forward=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            vocabulary=config.vocab_size,
            heads=config.num_attention_heads,
            key_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            feed_forward_matrices=2 if config.model_type == "phi" else 3,
            tied=config.tie_word_embeddings,
        )

    @property
    def linear(self) -> int:
        """Weights of the linear layers: what is rounded to 4 bits."""
        attention = 2 * (self.heads + self.key_heads) * self.head_size * self.hidden
        return self.layers * (attention + self.feed_forward_matrices * self.hidden * self.feed_forward)

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and of the output layer if it is another matrix; never rounded to 4 bits."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def keys_and_values(self) -> int:
        """Numbers kept per token of context."""
        return 2 * self.layers * self.key_heads * self.head_size

    def adapters(self, rank: int) -> int:
        """Trainable weights of low-rank adapters on every linear layer: rank * (inputs + outputs) each."""
        attention = 4 * self.hidden + 2 * (self.heads + self.key_heads) * self.head_size
        feed_forward = self.feed_forward_matrices * (self.hidden + self.feed_forward)
        return self.layers * rank * (attention + feed_forward)


_GATED_FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class KnownModel:
    """A model known by name.

    Parameters
    ----------
    name
        As presets say it: the Hub's name without the owner.
    repo
        ``OWNER/NAME`` on the Hub; None for the model that is embedded in this project's assets.
    family
        Its architecture: ``model_type`` of its transformers configuration.
    licence, page
        The licence's name, and where it is read (and accepted, if ``gated``).
    parameters
        As published.
    plain
        Spoken to in this project's plain format instead of one of its own.
    targets
        Linear layers that carry adapters: all of them but the output layer.
    """

    name: str
    repo: str | None
    family: str
    licence: str
    parameters: int
    shape: Shape
    gated: bool = False
    plain: bool = False
    targets: tuple[str, ...] = _GATED_FEED_FORWARD

    @property
    def page(self) -> str:
        """The model's page, where its licence is read and, for a gated model, accepted."""
        return HUB + (self.repo or "HuggingFaceTB/SmolLM2-135M-Instruct")


MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="SmolLM2-135M-Instruct",
            repo=None,
            family="llama",
            licence="Apache-2.0",
            parameters=134_515_008,
            shape=Shape(30, 576, 1536, 49152, heads=9, key_heads=3, head_size=64),
        ),
        KnownModel(
            name="gemma-2b",
            repo="google/gemma-2b",
            family="gemma",
            licence="Gemma Terms of Use",
            parameters=2_506_172_416,
            shape=Shape(18, 2048, 16384, 256000, heads=8, key_heads=1, head_size=256),
            gated=True,
            plain=True,
        ),
        KnownModel(
            name="phi-2",
            repo="microsoft/phi-2",
            family="phi",
            licence="MIT",
            parameters=2_779_683_840,
            shape=Shape(
                32, 2560, 10240, 51200, heads=32, key_heads=32, head_size=80, feed_forward_matrices=2, tied=False
            ),
            plain=True,
            targets=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        ),
        KnownModel(
            name="Qwen2.5-1.5B",
            repo="Qwen/Qwen2.5-1.5B",
            family="qwen2",
            licence="Apache-2.0",
            parameters=1_543_714_304,
            shape=Shape(28, 1536, 8960, 151936, heads=12, key_heads=2, head_size=128),
            plain=True,
        ),
        KnownModel(
            name="Qwen2.5-1.5B-Instruct",
            repo="Qwen/Qwen2.5-1.5B-Instruct",
            family="qwen2",
            licence="Apache-2.0",
            parameters=1_543_714_304,
            shape=Shape(28, 1536, 8960, 151936, heads=12, key_heads=2, head_size=128),
        ),
        KnownModel(
            name="Llama-3.2-1B-Instruct",
            repo="meta-llama/Llama-3.2-1B-Instruct",
            family="llama",
            licence="Llama 3.2 Community License",
            parameters=1_235_814_400,
            shape=Shape(16, 2048, 8192, 128256, heads=32, key_heads=8, head_size=64),
            gated=True,
        ),
        KnownModel(
            name="gemma-3-270m-it",
            repo="google/gemma-3-270m-it",
            family="gemma3_text",
            licence="Gemma Terms of Use",
            parameters=268_098_176,
            shape=Shape(18, 640, 2048, 262144, heads=4, key_heads=1, head_size=256),
            gated=True,
        ),
    )
}
