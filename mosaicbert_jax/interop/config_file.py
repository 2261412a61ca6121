"""Converts between BertConfig and the config.json of Hugging Face's libraries."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.interop import modernbert_config
from mosaicbert_jax.interop.names import LAYOUTS, kind_of_config, kind_of_tensors
from mosaicbert_jax.interop.weight_files import read_json
from mosaicbert_jax.modeling.config import BertConfig, field_type
from mosaicbert_jax.text.tokenizer import padded_vocab_size

CONFIG_FILE = "config.json"
_FIELDS = {field.name: field_type(field)[0] for field in dataclasses.fields(BertConfig)}
# Fields that make another model with any other value.
_ONLY: dict[str, Any] = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
_MODEL_TYPES = ("bert", "mosaicbert", "modernbert", None)
# What other values of would be neither's.
_OF_BOTH = {
    "norm_position": "post",
    "normalization": "layernorm",
    "use_bias": True,
    "norm_bias": True,
    "head_bias": True,
    "sliding_window": None,
    "narrow_from_layer": None,
    "embedding_dropout_prob": None,
    "feed_forward_dropout_prob": None,
    "classifier_head": "pooler",
    "classifier_pooling": "cls",
}
_ARCHITECTURES = {
    "mosaicbert": {"position_embedding": "alibi", "feed_forward": "geglu"},
    "bert": {"position_embedding": "learned", "feed_forward": "gelu"},
}
_UNSTORED_OF_BOTH = (
    *_OF_BOTH, "global_attention_every", "global_rope_theta", "local_rope_theta",
)  # fmt: skip
# Stock BERT has no such field; ALiBi has no limit, which libraries would take this for.
_UNSTORED = {
    "bert": (*_UNSTORED_OF_BOTH, "head_norm_eps"),
    "mosaicbert": (*_UNSTORED_OF_BOTH, "max_position_embeddings"),
}
_TORCH_PREFIX = {"mosaicbert": "MosaicBert", "bert": "Bert", "modernbert": "ModernBert"}
MODEL_NAMES = {"mosaicbert": "MosaicBERT", "bert": "BERT", "modernbert": "ModernBERT"}
_UNCHECKED = ("global_attention_every", "sliding_window")  # which shape no tensor
AUTO_CLASSES = {
    "BertModel": "AutoModel",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForTokenClassification": "AutoModelForTokenClassification",
}


def read_config(
    folder: pathlib.Path, tensors: Mapping[str, np.ndarray], **overrides: Any
) -> tuple[BertConfig, int | None]:
    """The BertConfig that config.json describes, and its number of labels if it has one.

    The architecture comes from our own fields or, failing these, from the tensors' names (Wqkv is
    MosaicBERT, query is BERT), never from model_type: MosaicBERT was published as model_type bert.

    Args:
      folder: holds config.json.
      tensors: beside it, by their canonical names.
      **overrides: fields of BertConfig.

    Raises:
      UserError: no such file, or one that describes another kind of model or an impossible one.
    """
    path = folder / CONFIG_FILE
    stored = read_json(path)
    kind = kind_of_tensors(tensors)
    for key, only in (_ONLY if kind != "modernbert" else modernbert_config.ONLY).items():
        if stored.get(key, only) != only:
            raise UserError(f"{path}: {key} {stored[key]!r} is not supported, only {only}")
    if stored.get("model_type") not in _MODEL_TYPES:
        raise UserError(
            f"{path}: model_type {stored['model_type']!r} is not BERT: its tensors may have BERT's "
            "names, and yet it computes something else"
        )
    if (kind == "modernbert") != (stored.get("model_type") == "modernbert"):
        raise UserError(
            f"{path}: model_type {stored.get('model_type')!r} does not go with the names of the "
            f"tensors, which are those of {kind}"
        )
    if kind == "modernbert":
        try:
            fields = modernbert_config.read_fields(stored)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    else:
        fields = dict(_ARCHITECTURES[kind])
        fields |= {name: stored[name] for name in _FIELDS if name in stored and name != "dtype"}
        if fields["feed_forward"] == "gelu" and "layer_norm_eps" in stored:
            fields["head_norm_eps"] = stored["layer_norm_eps"]  # as in transformers
    words = tensors.get(LAYOUTS[kind].words)
    rows = len(words) if words is not None and words.ndim else 0
    entries = fields.get("vocab_size")
    # The original pads the table when it builds the model, and may have stored the size before.
    if type(entries) is int and entries != rows == padded_vocab_size(entries):
        fields["vocab_size"] = rows
    try:
        config = BertConfig.from_fields(fields | overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _check_bounds(path, config, tensors)
    return config, _num_labels(path, stored)


def _num_labels(path: pathlib.Path, stored: dict[str, Any]) -> int | None:
    labels = stored.get("id2label", stored.get("num_labels"))
    number = len(labels) if isinstance(labels, dict) else labels
    if number is not None and (type(number) is not int or number < 1):
        raise UserError(f"{path}: {labels!r} is neither an id2label nor a num_labels")
    return number


def read_labels(folder: pathlib.Path, num_labels: int) -> tuple[str, ...]:
    """The names of the classes by number, as config.json has them or transformers would give."""
    id2label = read_json(folder / CONFIG_FILE).get("id2label")
    if not isinstance(id2label, dict):
        id2label = {}
    return tuple(str(id2label.get(str(i), f"LABEL_{i}")) for i in range(num_labels))


def classifies_tokens(folder: pathlib.Path) -> bool:
    """Whether config.json names a class for token classification."""
    names = read_json(folder / CONFIG_FILE).get("architectures")
    return isinstance(names, list) and any("TokenClassification" in str(name) for name in names)


def _check_bounds(
    path: pathlib.Path, config: BertConfig, tensors: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError for sizes that the tensors cannot have, before a model is laid out by them.

    Those that are merely wrong show in the names and shapes, which are compared one by one.
    """
    elements = sum(tensor.size for tensor in tensors.values())
    for name, kind in _FIELDS.items():
        if name in _UNCHECKED or (config.position_embedding != "learned" and "position" in name):
            continue
        most = len(tensors) if name == "num_hidden_layers" else elements
        if kind is int and (getattr(config, name) or 0) > most:
            raise UserError(
                f"{path}: {name} is {getattr(config, name)}, but the weights beside it are "
                f"{len(tensors)} tensors of {elements} elements in all"
            )


def model_type(config: BertConfig) -> str:
    """What transformers shall take the model for: "bert", "modernbert", or our own "mosaicbert".

    Raises:
      UserError: a mixture, which no code of PyTorch computes.
    """
    kind = kind_of_config(config)
    if kind == "modernbert":
        wanted = modernbert_config.ARCHITECTURE
    else:
        wanted = _OF_BOTH | _ARCHITECTURES[kind]
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise UserError(
                f"model.{name} is {getattr(config, name)!r}, which {MODEL_NAMES[kind]} has as "
                f"{value!r}: no PyTorch code computes this mixture, so it can't be saved for it"
            )
    return kind


def stored_config(
    config: BertConfig,
    class_name: str,
    *,
    labels: Sequence[str],
    pad_token_id: int,
    problem_type: str | None,
) -> dict[str, Any]:
    """The contents of config.json.

    Args:
      class_name: of the model, such as "BertForMaskedLM".
      labels: the names of a classifier's outputs; none of another model.
      problem_type: what transformers shall take a classifier's outputs for; None: it guesses.

    Raises:
      UserError: no PyTorch code computes this model; see `model_type`.
    """
    kind = model_type(config)
    if kind == "bert" and "MaskedLM" in class_name:
        encoder, head = config.layer_norm_eps, config.head_norm_eps
        if encoder != head:
            raise UserError(
                f"head_norm_eps={head} and layer_norm_eps={encoder}: stock BERT has one for both"
            )
    if kind == "modernbert":
        modernbert_config.check_stored(config)
    prefix = _TORCH_PREFIX[kind]
    stored: dict[str, Any] = {
        "architectures": [prefix + class_name.removeprefix("Bert")],
        "model_type": kind,
    }
    if kind == "mosaicbert":
        stored["auto_map"] = {"AutoConfig": f"configuration_{kind}.{prefix}Config"} | {
            auto: f"modeling_{kind}.{prefix}{name.removeprefix('Bert')}"
            for name, auto in AUTO_CLASSES.items()
        }
    if kind == "modernbert":
        stored |= modernbert_config.stored_fields(config)
    else:
        stored |= {name: getattr(config, name) for name in _FIELDS if name not in _UNSTORED[kind]}
        stored["hidden_act"] = "gelu"
    # A float field may hold an int, at which transformers' typed fields would take offence.
    for name, value in stored.items():
        if _FIELDS.get(name) is float and value is not None:
            stored[name] = float(value)
    stored |= {
        "dtype": "float32",  # of the weights, as everywhere; ours, of the computation, is a choice
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
    }
    if problem_type is not None:
        stored["problem_type"] = problem_type
    if labels:
        stored["id2label"] = {str(index): label for index, label in enumerate(labels)}
        stored["label2id"] = {label: index for index, label in enumerate(labels)}
    return stored
