"""Reads models from folders in the layout of Hugging Face: config.json and model.safetensors."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError, safe_open

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig

_TIED = "cls.predictions.decoder.weight"
_WORDS = "bert.embeddings.word_embeddings.weight"
# Tensors of heads that the class asked for may not have, and a buffer of old BERT checkpoints.
_OTHER_HEADS = ("cls.", "classifier.", "bert.pooler.", "bert.embeddings.position_ids")

# Our path after the layer's number -> the checkpoint's; the baseline's projections are apart.
_MOSAIC_LAYER = {
    "attention.qkv": ("attention.self.Wqkv",),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.input": ("mlp.gated_layers",),
    "feed_forward.output": ("mlp.wo",),
    "feed_forward_norm": ("mlp.layernorm",),
}
_BERT_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.input": ("intermediate.dense",),
    "feed_forward.output": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
_OUTSIDE_LAYERS = {
    "bert.embeddings.word": "bert.embeddings.word_embeddings",
    "bert.embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "bert.embeddings.position": "bert.embeddings.position_embeddings",
    "bert.embeddings.norm": "bert.embeddings.LayerNorm",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
    "pooler": "bert.pooler.dense",
    "classifier": "classifier",
}


def tensor_names(path: tuple[str | int, ...], config: BertConfig) -> tuple[str, ...]:
    """The checkpoint's names of one of our parameters; several are joined along the outputs.

    Args:
      path: where the parameter is in a model, such as ("bert", "layers", 0, "attention", "qkv",
        "kernel"); a bare BertModel's paths lack the leading "bert".
    """
    parts = [str(part) for part in path]
    if parts[0] in ("embeddings", "layers"):
        parts.insert(0, "bert")
    module, leaf = ".".join(parts[:-1]), "bias" if parts[-1] == "bias" else "weight"
    if parts[1] == "layers":
        table = _MOSAIC_LAYER if config.feed_forward == "geglu" else _BERT_LAYER
        inner = table[".".join(parts[3:-1])]
        return tuple(f"bert.encoder.layer.{parts[2]}.{name}.{leaf}" for name in inner)
    return (f"{_OUTSIDE_LAYERS[module]}.{leaf}",)


def load_model(cls: type, folder: str | os.PathLike, *, renew: tuple[str, ...] = (), **options):
    """A model of class `cls` with the weights in `folder`; see `from_pretrained`.

    Args:
      renew: parts of the model that start anew instead, such as ("pooler", "classifier").
      **options: num_labels, and fields of BertConfig that override the file's.
    """
    folder = pathlib.Path(folder)
    tensors = _read_tensors(folder)
    init = {"num_labels": options.pop("num_labels")} if "num_labels" in options else {}
    config = read_config(folder, set(tensors), **options)
    # Shapes alone: nothing is drawn that the file's weights would replace at once.
    graph, shapes = nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **init)))
    flat, problems = {}, []
    for path, shape in nnx.to_flat_state(shapes):
        names = tensor_names(path, config)
        parts = [tensors.pop(name, None) for name in names]
        if path[0] in renew:
            continue
        if any(part is None for part in parts):
            problems += [
                f"missing {n}" for n, part in zip(names, parts, strict=True) if part is None
            ]
            continue
        # PyTorch stores (outputs, inputs).
        wanted = shape.shape[::-1] if path[-1] == "kernel" else shape.shape
        wanted = (wanted[0] // len(parts), *wanted[1:])
        wrong = [
            f"{name} is {part.shape}, the config says {wanted}"
            for name, part in zip(names, parts, strict=True)
            if part.shape != wanted
        ]
        problems += wrong
        if wrong:
            continue
        array = np.concatenate(parts)
        array = array.T if path[-1] == "kernel" else array
        flat[path] = jnp.asarray(array, shape.dtype)
    problems += [f"unknown {name}" for name in sorted(tensors) if not name.startswith(_OTHER_HEADS)]
    if problems:
        raise UserError(
            f"{folder} does not hold this {cls.__name__}: {'; '.join(problems[:20])}"
            + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        )
    if renew:
        fresh = nnx.state(cls(config, rngs=nnx.Rngs(0), **init), nnx.Param)
        flat |= {p: v[...] for p, v in nnx.to_flat_state(fresh) if p[0] in renew}
    return nnx.merge(graph, traverse_util.unflatten_dict(flat))


def read_config(
    folder: str | os.PathLike, names: set[str] | frozenset[str], **overrides: Any
) -> BertConfig:
    """The BertConfig that config.json describes.

    The architecture comes from our own fields or, failing these, from the tensors' names (Wqkv is
    MosaicBERT, query is BERT), never from model_type: MosaicBERT was published as model_type bert.

    Args:
      folder: holds config.json.
      names: of the tensors beside it.
      **overrides: fields of BertConfig.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        stored = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path}: must hold a JSON object")
    if stored.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path}: hidden_act {stored['hidden_act']!r} is not supported, only gelu")
    if stored.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{path}: position_embedding_type {stored['position_embedding_type']!r} is not "
            "supported, only absolute"
        )
    mosaic = any("Wqkv" in name for name in names)
    fields: dict[str, Any] = {
        "position_embedding": "alibi" if mosaic else "learned",
        "feed_forward": "geglu" if mosaic else "gelu",
    }
    known = {field.name for field in dataclasses.fields(BertConfig)} - {"dtype"}
    fields |= {name: value for name, value in stored.items() if name in known}
    return BertConfig.from_fields(fields | overrides)


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors by their full names; the tied decoder is checked and left out."""
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
    if not any(name.startswith("bert.") for name in tensors):
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    for name in list(tensors):
        # Names from before PyTorch: the original BERT's.
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
        tensors[new] = tensors.pop(name)
    # Stock BERT's decoder shares this bias, and either name may be the one that was stored.
    bias = tensors.pop("cls.predictions.bias", None)
    if bias is not None:
        tensors.setdefault("cls.predictions.decoder.bias", bias)
    tied = tensors.pop(_TIED, None)
    if tied is not None and not np.array_equal(tied, tensors.get(_WORDS)):
        raise UserError(f"{path}: {_TIED} differs from {_WORDS}, but the two are tied")
    return tensors
