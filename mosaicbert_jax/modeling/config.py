"""The config of an encoder."""

import dataclasses
import difflib
import typing
from typing import Any, Self

import jax
import jax.numpy as jnp

from mosaicbert_jax.errors import UserError

_CHOICES = {
    "norm_position": ("post", "pre"),
    "normalization": ("layernorm", "rmsnorm"),
    "position_embedding": ("alibi", "learned", "rope"),
    "feed_forward": ("geglu", "swiglu", "gelu"),
    "classifier_head": ("pooler", "prediction"),
    "classifier_pooling": ("cls", "mean"),
    "dtype": ("float32", "bfloat16", "float16"),
    "layer_norm_dtype": ("float32", "bfloat16", "float16", None),
}
_BASE = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
_LARGE = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_BASELINE = {
    "vocab_size": 30522,
    "position_embedding": "learned",
    "feed_forward": "gelu",
    "layer_norm_dtype": "float32",
    "attention_probs_dropout_prob": 0.1,
}
_MODERNBERT = {
    "vocab_size": 50368,
    "max_position_embeddings": 8192,
    "type_vocab_size": 0,
    "hidden_dropout_prob": 0.0,
    "norm_position": "pre",
    "layer_norm_eps": 1e-5,
    "head_norm_eps": 1e-5,
    "use_bias": False,
    "norm_bias": False,
    "head_bias": False,
    "position_embedding": "rope",
    "sliding_window": 64,
    "global_attention_every": 3,
    "classifier_head": "prediction",
}
_MODERNBERT_BASE = {
    "num_hidden_layers": 22,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
}
_MODERNBERT_LARGE = {
    "num_hidden_layers": 28,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 2624,
}
_POSITIVE = {"global_rope_theta", "local_rope_theta"}
_MAY_BE_ZERO = {"type_vocab_size", "sliding_window", "narrow_from_layer"}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and switches of an encoder; the fields that Hugging Face has keep its names.

    Attributes:
      vocab_size: rows of the embedding table, padding entries included. A run that leaves it
        unset takes the data set's padded vocabulary.
      hidden_size: E, the width of the residual stream.
      num_hidden_layers: how many layers the encoder has.
      num_attention_heads: H; divides hidden_size.
      intermediate_size: F, the width of the feed-forward.
      max_position_embeddings: rows of the position table of `position_embedding="learned"`; with
        "rope", the length that the model is meant for. ALiBi has no limit.
      type_vocab_size: token types; two for pairs of texts, 0 for none.
      hidden_dropout_prob: dropout of embeddings, attention output and feed-forward.
      embedding_dropout_prob: dropout of the embeddings; None: hidden_dropout_prob.
      feed_forward_dropout_prob: dropout of the feed-forward; None: hidden_dropout_prob.
      attention_probs_dropout_prob: dropout of attention probabilities, for the baseline.
      classifier_dropout: dropout before a classifier; None: hidden_dropout_prob.
      norm_position: "post" (the norm of each residual sum is the next input, as in BERT) or "pre"
        (each half of a layer reads a norm of the residual stream, and the last layer's output has
        one more; the embeddings' norm is the first, and output projections start smaller by the
        root of twice the layers, as in ModernBERT).
      normalization: "layernorm" or "rmsnorm", which subtracts no mean and has no bias.
      layer_norm_eps: epsilon of the norms in the encoder.
      head_norm_eps: epsilon of the norm in the masked-language-model head; the original
        MosaicBERT's is 1e-12 whatever the encoder's, stock BERT's is the encoder's.
      use_bias: whether attention's projections and the feed-forward's last one have biases. The
        first one of a gated feed-forward never has.
      norm_bias: whether LayerNorms have biases.
      head_bias: whether the dense layer of the masked-language-model head has a bias.
      initializer_range: standard deviation of every initial weight.
      position_embedding: "alibi" (a linear bias in attention), "learned" (a table, restarting at
        each segment) or "rope" (rotated queries and keys).
      global_rope_theta: base of the rotation in layers whose attention is global.
      local_rope_theta: base of the rotation in layers with a sliding window.
      sliding_window: tokens on each side that a token sees in local layers.
      global_attention_every: of so many layers the first is global and the others are local; 1: all
        are global.
      narrow_from_layer: of layers from this number on, keys and values are of what enters that
        layer, so that each computes only the positions that are predicted (NarrowBERT); None: all
        layers read what enters them, and only the last one is narrow.
      feed_forward: "geglu" (gated, dropout before the output projection), "swiglu" (the same with
        SiLU for GELU) or "gelu" (BERT's).
      classifier_head: what a classifier reads hidden states through: "pooler" (a dense layer and
        tanh; words are read without it, as in BERT) or "prediction" (the layers of the
        masked-language-model head, as in ModernBERT).
      classifier_pooling: what a sequence's class is read from: "cls" (its first token) or "mean"
        (the mean of its tokens).
      dtype: of the computation; parameters are always float32. A run's "auto" is bfloat16 on
        GPUs, else float32.
      layer_norm_dtype: of LayerNorm's input and output, its statistics being float32 always.
        None: the same as dtype ("low precision LayerNorm").
    """

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    embedding_dropout_prob: float | None = None
    feed_forward_dropout_prob: float | None = None
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout: float | None = None
    norm_position: str = "post"
    normalization: str = "layernorm"
    layer_norm_eps: float = 1e-12
    head_norm_eps: float = 1e-12
    use_bias: bool = True
    norm_bias: bool = True
    head_bias: bool = True
    initializer_range: float = 0.02
    position_embedding: str = "alibi"
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    sliding_window: int | None = None
    global_attention_every: int = 1
    narrow_from_layer: int | None = None
    feed_forward: str = "geglu"
    classifier_head: str = "pooler"
    classifier_pooling: str = "cls"
    dtype: str = "float32"
    layer_norm_dtype: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind, may_be_none = field_type(field)
            value = getattr(self, field.name)
            if value is not None or not may_be_none:
                _check_value(field.name, kind, value)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"model.{name} must be one of {choices}, not {getattr(self, name)!r}"
                )
        for name in ("layer_norm_eps", "head_norm_eps", "initializer_range"):
            if not getattr(self, name) >= 0:
                raise UserError(f"model.{name} must not be negative")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size {self.hidden_size} must be a multiple of "
                f"model.num_attention_heads {self.num_attention_heads}"
            )

        if self.position_embedding == "rope" and self.head_size % 2:
            raise UserError(
                "model.position_embedding 'rope' needs heads of an even size, hidden_size / "
                f"num_attention_heads, not {self.head_size}"
            )
        if self.normalization == "rmsnorm" and self.norm_bias:
            raise UserError("model.normalization 'rmsnorm' has no bias: set model.norm_bias=False")
        if (self.global_attention_every > 1) != (self.sliding_window is not None):
            raise UserError(
                "model.sliding_window is for the layers between those of "
                "model.global_attention_every: set both, or None and 1"
            )

        if (self.narrow_from_layer or 0) >= self.num_hidden_layers:
            raise UserError(
                f"model.narrow_from_layer={self.narrow_from_layer}: the layers are numbered 0 to "
                f"{self.num_hidden_layers - 1}"
            )

    @classmethod
    def mosaicbert_base(cls, **overrides: Any) -> Self:
        """MosaicBERT-Base: 137,400,384 parameters with the masked-language-model head."""
        return cls.from_fields(_BASE | overrides)

    @classmethod
    def mosaicbert_large(cls, **overrides: Any) -> Self:
        """MosaicBERT-Large: 435,221,312 parameters with the masked-language-model head."""
        return cls.from_fields(_LARGE | overrides)

    @classmethod
    def bert_base(cls, **overrides: Any) -> Self:
        """The BERT-Base baseline: 109,514,298 parameters with the masked-language-model head."""
        return cls.from_fields(_BASE | _BASELINE | overrides)

    @classmethod
    def bert_large(cls, **overrides: Any) -> Self:
        """The BERT-Large baseline: 335,174,458 parameters with the masked-language-model head."""
        return cls.from_fields(_LARGE | _BASELINE | overrides)

    @classmethod
    def modernbert_base(cls, **overrides: Any) -> Self:
        """ModernBERT-base: 149,655,232 parameters with the masked-language-model head.

        Warner et al., 2024, arXiv:2412.13663; by the published sizes and those of its checkpoints.
        """
        return cls.from_fields(_MODERNBERT_BASE | _MODERNBERT | overrides)

    @classmethod
    def modernbert_large(cls, **overrides: Any) -> Self:
        """ModernBERT-large: 395,881,664 parameters with the masked-language-model head."""
        return cls.from_fields(_MODERNBERT_LARGE | _MODERNBERT | overrides)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """A config from a mapping; an unknown field is an error that names the nearest one."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict):
            raise UserError(f"the fields of a model are a mapping, not {type(fields).__name__}")
        for name in fields:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean model.{near[0]}?" if near else f"; there are {names}"
                raise UserError(f"there is no model.{name}{hint}")
        return cls(**fields)

    @property
    def head_size(self) -> int:
        """D: hidden_size / num_attention_heads."""
        return self.hidden_size // self.num_attention_heads

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward multiplies two halves of its first projection."""
        return self.feed_forward != "gelu"

    def dropout_rate(self, field: str) -> float:
        """A rate that may be None: it is hidden_dropout_prob then."""
        rate = getattr(self, field)
        return self.hidden_dropout_prob if rate is None else rate

    def window_of(self, layer: int) -> int | None:
        """Tokens on each side that a token sees in that layer; None: its whole segment."""
        return self.sliding_window if layer % self.global_attention_every else None

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        return jnp.dtype(self.dtype)

    @property
    def norm_dtype(self) -> jnp.dtype:
        """The dtype in which LayerNorm reads and writes."""
        return jnp.dtype(self.layer_norm_dtype or self.dtype)


def field_type(field: dataclasses.Field) -> tuple[type, bool]:
    """The type of a field of BertConfig, and whether it may be None."""
    kinds = typing.get_args(field.type) or (field.type,)
    return kinds[0], type(None) in kinds


def _check_value(name: str, kind: type, value: Any) -> None:
    """Raises UserError for a value that a field can't have."""
    if kind is int:
        least = 0 if name in _MAY_BE_ZERO else 1
        if type(value) is not int or value < least:
            wanted = "a positive integer" if least else "an integer of 0 or more"
            raise UserError(f"model.{name} must be {wanted}, not {value!r}")
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"model.{name} must be a number, not {value!r}")
        if "dropout" in name and not 0.0 <= value < 1.0:
            raise UserError(f"model.{name} must be in [0, 1), not {value!r}")
        if name in _POSITIVE and not 0.0 < value < float("inf"):
            raise UserError(f"model.{name} must be a positive number, not {value!r}")
    if kind is bool and type(value) is not bool:
        raise UserError(f"model.{name} must be True or False, not {value!r}")


def resolved_dtype(dtype: str) -> str:
    """What "auto" stands for on this machine; any other dtype itself."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if jax.default_backend() == "gpu" else "float32"
