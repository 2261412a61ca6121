"""The config of an encoder."""

import dataclasses
import difflib
from typing import Any, Self

import jax
import jax.numpy as jnp

from mosaicbert_jax.errors import UserError

_CHOICES = {
    "position_embedding": ("alibi", "learned"),
    "feed_forward": ("geglu", "gelu"),
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
      max_position_embeddings: rows of the position table; only `position_embedding="learned"`
        has one. ALiBi has no limit.
      type_vocab_size: token types; two for pairs of texts.
      hidden_dropout_prob: dropout of embeddings, attention output and feed-forward.
      attention_probs_dropout_prob: dropout of attention probabilities, for the baseline.
      layer_norm_eps: of the LayerNorms in the encoder.
      head_norm_eps: of the LayerNorm in the masked-language-model head; the original's is 1e-12
        whatever the encoder's, stock BERT's is the encoder's.
      initializer_range: standard deviation of every initial weight.
      position_embedding: "alibi" (a linear bias in attention) or "learned" (a table, restarting
        at each segment).
      feed_forward: "geglu" (gated, dropout before the output projection) or "gelu" (BERT's).
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
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    head_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    position_embedding: str = "alibi"
    feed_forward: str = "geglu"
    dtype: str = "float32"
    layer_norm_dtype: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise UserError(f"model.{field.name} must be a positive integer, not {value!r}")
            if field.type is float and not isinstance(value, (int, float)):
                raise UserError(f"model.{field.name} must be a number, not {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"model.{name} must be one of {choices}, not {getattr(self, name)!r}"
                )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model.{name} must be in [0, 1), not {getattr(self, name)!r}")
        for name in ("layer_norm_eps", "head_norm_eps", "initializer_range"):
            if not getattr(self, name) >= 0:
                raise UserError(f"model.{name} must not be negative")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size {self.hidden_size} must be a multiple of "
                f"model.num_attention_heads {self.num_attention_heads}"
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
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        return jnp.dtype(self.dtype)

    @property
    def norm_dtype(self) -> jnp.dtype:
        """The dtype in which LayerNorm reads and writes."""
        return jnp.dtype(self.layer_norm_dtype or self.dtype)


def resolved_dtype(dtype: str) -> str:
    """What "auto" stands for on this machine; any other dtype itself."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if jax.default_backend() == "gpu" else "float32"
