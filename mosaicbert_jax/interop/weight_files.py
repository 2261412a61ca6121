"""Reads weight files (safetensors, sharded or not, and PyTorch's) into arrays by name."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import how_to_download, is_hub_name
from mosaicbert_jax.interop.torch_file import read_torch_file

SAFETENSORS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TORCH = "pytorch_model.bin"


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors in a folder: of model.safetensors, of the shards in model.safetensors.index.json,
    or of pytorch_model.bin, whichever is there first.

    Raises:
      UserError: none of the files, a damaged one, or shards other than their index says.
    """
    if (folder / SAFETENSORS).exists():
        return _read_safetensors(folder / SAFETENSORS)
    if (folder / _INDEX).exists():
        return _read_shards(folder)
    if (folder / _TORCH).exists():
        return read_torch_file(folder / _TORCH)
    if not folder.exists() and is_hub_name(str(folder)):
        raise UserError(f"{folder}: no such folder. {how_to_download(str(folder))}")
    raise UserError(f"{folder} cannot be read as a model: no {SAFETENSORS}, {_INDEX} or {_TORCH}")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object. Raises UserError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return found


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Of a dtype that NumPy doesn't have, such as float8: TypeError or AttributeError.
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error


def _read_shards(folder: pathlib.Path) -> dict[str, np.ndarray]:
    path = folder / _INDEX
    file_of_name = read_json(path).get("weight_map")
    if not isinstance(file_of_name, dict) or not file_of_name:
        raise UserError(f"{path}: has no weight_map from names to files")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted({str(file) for file in file_of_name.values()}):
        if pathlib.PurePath(file).name != file:
            raise UserError(f"{path}: {file!r} is not the name of a file beside it")
        tensors |= _read_safetensors(folder / file)
    wrong = sorted(file_of_name.keys() ^ tensors.keys())
    if wrong:
        raise UserError(
            f"{path}: in the index or in the files, but not in both: {', '.join(wrong[:20])}"
        )
    return tensors
