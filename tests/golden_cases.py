"""Reads the golden cases and lays a case out as a Hugging Face folder."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from mosaicbert_jax.interop.names import tensor_names

FOLDER = pathlib.Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("[a-d]_*.safetensors"))


class Case:
    """One case: `tensors` and `facts` as stored, inputs in our terms."""

    def __init__(self, name: str):
        self.name = name
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        self.facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.tokens_BL = jnp.asarray(self.tensors["input_ids"], jnp.int32)
        self.segment_ids_BL = jnp.asarray(self.tensors["attention_mask"], jnp.int32)
        types = self.tensors.get("token_type_ids")
        self.token_type_ids_BL = None if types is None else jnp.asarray(types, jnp.int32)

    def write_folder(self, folder: pathlib.Path, *, classifier: bool = False) -> pathlib.Path:
        """config.json and model.safetensors, with the original's names."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.facts["config"]))
        weights = {k[2:]: v for k, v in self.tensors.items() if k.startswith("w.")}
        if classifier:
            weights |= {k[6:]: v for k, v in self.tensors.items() if k.startswith("w_cls.")}
        save_file(weights, folder / "model.safetensors")
        return folder

    def predictions(self, slots: int):
        """positions, labels, weights (B, slots), of the labels that the original counted (> 0)."""
        labels_BL = self.tensors["mlm_labels"]
        shape = (labels_BL.shape[0], slots)
        positions, labels, weights = (
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape),
        )
        for row, row_labels in enumerate(labels_BL):
            columns = np.flatnonzero(row_labels > 0)
            positions[row, : len(columns)] = columns
            labels[row, : len(columns)] = row_labels[columns]
            weights[row, : len(columns)] = 1
        return jnp.asarray(positions), jnp.asarray(labels), jnp.asarray(weights, jnp.float32)

    def gradient_error(self, gradients: nnx.State, config, prefix: str) -> float:
        """The largest difference to a stored gradient, as a share of its largest element."""
        worst = 0.0
        for path, value in nnx.to_flat_state(gradients):
            names = tensor_names(path, config)
            expected = np.concatenate([self.tensors[prefix + name] for name in names])
            ours = np.asarray(value[...])
            ours = ours.T if path[-1] == "kernel" else ours
            assert ours.shape == expected.shape
            worst = max(worst, np.abs(ours - expected).max() / np.abs(expected).max())
        return worst
