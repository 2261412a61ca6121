"""ModernBERT's config.json, as transformers and the checkpoints of its family have it.

Fields and their defaults are those of transformers' ModernBertConfig, which ModernBERT, Ettin and
mmBERT share. transformers 5 writes `layer_types` and `rope_parameters`, older releases and the
published checkpoints `global_attn_every_n_layers` and the two thetas; both are read.
"""

from typing import Any

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig

# Fields that make another model with any other value.
ONLY: dict[str, Any] = {
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "attention_bias": False,
    "mlp_bias": False,
    "decoder_bias": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}
# What ModernBERT is; all other fields of BertConfig have a place in config.json.
ARCHITECTURE: dict[str, Any] = {
    "norm_position": "pre",
    "normalization": "layernorm",
    "position_embedding": "rope",
    "feed_forward": "geglu",
    "type_vocab_size": 0,
    "use_bias": False,
    "classifier_head": "prediction",
    "narrow_from_layer": None,
}
# Ours -> theirs, and the value of one that is not stored.
_SAME_MEANING = {
    "vocab_size": ("vocab_size", 50368),
    "hidden_size": ("hidden_size", 768),
    "num_hidden_layers": ("num_hidden_layers", 22),
    "num_attention_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 1152),
    "max_position_embeddings": ("max_position_embeddings", 8192),
    "hidden_dropout_prob": ("attention_dropout", 0.0),
    "attention_probs_dropout_prob": ("attention_dropout", 0.0),
    "embedding_dropout_prob": ("embedding_dropout", 0.0),
    "feed_forward_dropout_prob": ("mlp_dropout", 0.0),
    "classifier_dropout": ("classifier_dropout", 0.0),
    "layer_norm_eps": ("norm_eps", 1e-5),
    "head_norm_eps": ("norm_eps", 1e-5),
    "norm_bias": ("norm_bias", False),
    "head_bias": ("classifier_bias", False),
    "initializer_range": ("initializer_range", 0.02),
    "classifier_pooling": ("classifier_pooling", "cls"),
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def read_fields(stored: dict[str, Any]) -> dict[str, Any]:
    """The fields of a BertConfig.

    Raises:
      UserError: a pattern of layers or a rotation that is not ModernBERT's.
    """
    fields = {ours: stored.get(theirs, value) for ours, (theirs, value) in _SAME_MEANING.items()}
    every = _global_attention_every(stored)
    theta = {kind: _theta(stored, kind) for kind in (_GLOBAL, _LOCAL)}
    if every > 1:
        window = stored.get("local_attention", 128)
        if type(window) is not int or window < 0:
            raise UserError(f"local_attention {window!r} is no number of tokens")
        fields["sliding_window"] = window // 2
    return fields | ARCHITECTURE | {
        "global_attention_every": every,
        "global_rope_theta": theta[_GLOBAL],
        "local_rope_theta": theta[_LOCAL],
    }  # fmt: skip


def _global_attention_every(stored: dict[str, Any]) -> int:
    every = stored.get("global_attn_every_n_layers", 3)
    if type(every) is not int or every < 1:
        raise UserError(f"global_attn_every_n_layers {every!r} is no number of layers")
    kinds = stored.get("layer_types")
    if kinds is None:
        return every
    is_global = [kind == _GLOBAL for kind in kinds] if isinstance(kinds, list) else []
    every = next((i for i, found in enumerate(is_global[1:], 1) if found), len(is_global))
    if not is_global or is_global != [i % every == 0 for i in range(len(is_global))]:
        raise UserError("layer_types is not supported but as one global layer in every so many")
    return every


def _theta(stored: dict[str, Any], kind: str) -> float:
    old = {_GLOBAL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}[kind]
    parameters = stored.get("rope_parameters")
    found = parameters.get(kind) if isinstance(parameters, dict) else None
    if not isinstance(found, dict):
        return stored.get(*old)
    if found.get("rope_type", "default") != "default":
        raise UserError(f"rope_type {found['rope_type']!r} is not supported, only default")
    return found.get("rope_theta", stored.get(*old))


def check_stored(config: BertConfig) -> None:
    """Raises UserError for fields that share a place in config.json and differ."""
    for left, right in (
        ("layer_norm_eps", "head_norm_eps"),
        (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
        ),
    ):
        if getattr(config, left) != getattr(config, right):
            raise UserError(
                f"{left}={getattr(config, left)} and {right}={getattr(config, right)}: ModernBERT "
                "has one for both"
            )


def stored_fields(config: BertConfig) -> dict[str, Any]:
    """What config.json says of a ModernBERT, in a form that all releases of transformers read."""
    stored = {
        theirs: config.dropout_rate(ours) if "dropout" in ours else getattr(config, ours)
        for ours, (theirs, _) in _SAME_MEANING.items()
    }
    window = config.sliding_window
    return stored | {
        "global_attn_every_n_layers": config.global_attention_every,
        "local_attention": 128 if window is None else 2 * window,
        "global_rope_theta": float(config.global_rope_theta),
        "local_rope_theta": float(config.local_rope_theta),
        **{name: ONLY[name] for name in ("hidden_activation", "classifier_activation")},
        **{name: ONLY[name] for name in ("attention_bias", "mlp_bias", "decoder_bias")},
        "initializer_cutoff_factor": 2.0,
    }
