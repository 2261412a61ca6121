"""Reads models from folders in the layout of Hugging Face: config.json and weights."""

import dataclasses
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.interop.config_file import (
    CONFIG_FILE,
    classifies_tokens,
    read_config,
    read_labels,
)
from mosaicbert_jax.interop.names import LAYOUTS, canonical_name, kind_of_config, kind_of_tensors
from mosaicbert_jax.interop.weight_files import read_json, read_weights
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.heads import BertForSequenceClassification, BertForTokenClassification

_MOST_LISTED = 20
_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class FolderContents:
    """What a folder holds.

    Attributes:
      config: of the encoder.
      heads: which of "pooler", "head" and "classifier" a classifier would find there.
      labels: the names of a classifier's outputs, by number.
      of_tokens: whether the classifier is one of tokens, by its class.
      problem_type: as config.json has it.
    """

    config: BertConfig
    heads: frozenset[str]
    labels: tuple[str, ...]
    of_tokens: bool
    problem_type: str | None


def folder_contents(folder: pathlib.Path) -> FolderContents:
    """Describes the model in a folder; raises UserError as `read_model`."""
    tensors = _read_tensors(folder)
    config, num_labels = read_config(folder, tensors)
    outside = LAYOUTS[kind_of_config(config)].outside
    heads = {"pooler": "pooler", "head": "head.dense", "classifier": "classifier"}
    if config.classifier_head != "prediction":
        del heads["head"]
    return FolderContents(
        config,
        frozenset(head for head, part in heads.items() if f"{outside.get(part)}.weight" in tensors),
        read_labels(folder, num_labels or 2),
        classifies_tokens(folder),
        read_json(folder / CONFIG_FILE).get("problem_type"),
    )


def read_model(cls: type, folder: str | os.PathLike, *, renew: tuple[str, ...] = (), **options):
    """A model of class `cls` with the weights in `folder`; see `from_pretrained`."""
    folder = pathlib.Path(folder)
    tensors = _read_tensors(folder)
    init = {}
    if issubclass(cls, BertForSequenceClassification | BertForTokenClassification):
        init["num_labels"] = options.pop("num_labels", None)
    config, num_labels = read_config(folder, tensors, **options)
    if "num_labels" in init and init["num_labels"] is None:
        init["num_labels"] = num_labels or 2  # as transformers, which does not store two

    def build():
        return cls(config, rngs=nnx.Rngs(0), **init)

    # Shapes alone: nothing is drawn that the file's weights would replace at once.
    graph, shapes = nnx.split(nnx.eval_shape(build))
    shape_of_path = dict(nnx.to_flat_state(shapes))
    parts = {path[0] for path in shape_of_path}
    if set(renew) - parts:
        raise UserError(f"renew={tuple(renew)}: the parts of a {cls.__name__} are {sorted(parts)}")
    params, problems = _match(shape_of_path, tensors, config, set(renew))
    if problems:
        more = len(problems) - _MOST_LISTED
        raise UserError(
            f"{folder} does not hold this {cls.__name__}: {'; '.join(problems[:_MOST_LISTED])}"
            + (f"; and {more} more" if more > 0 else "")
        )
    if renew:
        fresh = nnx.state(build(), nnx.Param)
        params |= {p: v[...] for p, v in nnx.to_flat_state(fresh) if p[0] in renew}
    return nnx.merge(graph, traverse_util.unflatten_dict(params))


def _match(
    shape_of_path: dict, tensors: dict[str, np.ndarray], config: BertConfig, renew: set[str]
) -> tuple[dict, list[str]]:
    """Our parameters by path, all but those to renew; and what is missing, unknown or misshapen."""
    layout = LAYOUTS[kind_of_config(config)]
    params, problems, left = {}, [], dict(tensors)
    for path, wanted in shape_of_path.items():
        names = layout.names(path)
        parts = {name: left.pop(name, None) for name in names}
        if path[0] in renew:
            continue
        # PyTorch stores (outputs, inputs).
        shape = wanted.shape[::-1] if path[-1] == "kernel" else wanted.shape
        shape = (shape[0] // len(names), *shape[1:])
        wrong = [
            problem for name, part in parts.items() if (problem := _problem(name, part, shape))
        ]
        problems += wrong
        if not wrong:
            array = np.concatenate(list(parts.values()))
            array = array.T if path[-1] == "kernel" else array
            params[path] = jnp.asarray(array, wanted.dtype)
    of_others = layout.other_classes
    problems += [f"unknown {name}" for name in sorted(left) if not of_others.fullmatch(name)]
    return params, problems


def _problem(name: str, tensor: np.ndarray | None, shape: tuple[int, ...]) -> str | None:
    """Why a tensor cannot be the parameter."""
    if tensor is None:
        return f"missing {name}"
    if tensor.shape != shape:
        return f"{name} is {tensor.shape}, the config says {shape}"
    if tensor.dtype.name not in _DTYPES:
        return f"{name} is {tensor.dtype}, not one of {', '.join(_DTYPES)}"
    return None


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors by their canonical names; the tied decoder is checked and dropped."""
    stored = read_weights(folder)
    layout = LAYOUTS[kind_of_tensors(stored)]
    if not any(name.startswith(f"{layout.encoder}.") for name in stored):
        stored = {f"{layout.encoder}.{name}": tensor for name, tensor in stored.items()}
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in stored.items():
        # Stock BERT's decoder shares its bias, and both of its names may be there.
        name = canonical_name(name, layout)
        if name in tensors and not np.array_equal(tensors[name], tensor):
            raise UserError(f"{folder}: {name} is there under two names, with other values")
        tensors[name] = tensor
    tied = tensors.pop(layout.tied_decoder, None)
    if tied is not None and not np.array_equal(tied, tensors.get(layout.words)):
        raise UserError(
            f"{folder}: {layout.tied_decoder} differs from {layout.words}, but the two are tied"
        )
    return tensors
