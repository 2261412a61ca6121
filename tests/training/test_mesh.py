"""The same numbers on any mesh, and a run that resumes on another one."""

import json
import math
import os
import shutil
import subprocess

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mosaicbert_jax import BertConfig
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.storage.opening import abstract_params, build_model
from mosaicbert_jax.training import sharding
from tests.conftest import QUICK_COMPILE, ROOT, run_train

STEPS = 10
MESHES = {
    "one device": (1, ()),
    "data": (8, ()),
    "fsdp": (8, ("mesh.fsdp=8",)),
    "tensor": (2, ("mesh.tensor=2",)),
    "data, fsdp and tensor": (8, ("mesh.fsdp=2", "mesh.tensor=2")),
}
SETTINGS = (
    f"train.duration={STEPS}ba",
    "train.batch_tokens=2048",
    "train.microbatch_tokens=256",
    "checkpoint.every=5ba",
    "checkpoint.keep=2",
    "log.every=1",
    "eval.every=1000ba",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=4",
)


def train_on(mesh: str, workdir, dataset) -> np.ndarray:
    """The losses of a run on as many virtual devices as the mesh has."""
    devices, settings = MESHES[mesh]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}",
    }
    command = run_train(workdir, dataset, *SETTINGS, *settings)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if "loss" in row])


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    """The workdir and the losses of the run on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    return workdir, train_on("one device", workdir, dataset)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, marks=[] if "and" in mesh else pytest.mark.one_end)
        for mesh in list(MESHES)[1:]
    ],
)
def test_any_mesh_gives_the_same_losses(alone, dataset, tmp_path, mesh):
    losses = train_on(mesh, tmp_path / "run", dataset)
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, alone[1], rtol=2e-5)


def test_a_run_goes_on_with_another_mesh(alone, dataset, tmp_path):
    workdir, losses = tmp_path / "run", alone[1]
    shutil.copytree(alone[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    again = train_on("data, fsdp and tensor", workdir, dataset)
    np.testing.assert_allclose(again, losses, rtol=2e-5)
    assert (again[: STEPS // 2] == losses[: STEPS // 2]).all()
    assert (again[STEPS // 2 :] != losses[STEPS // 2 :]).any()  # trained again, other sums


def test_state_is_stored_in_parts():
    config = BertConfig.mosaicbert_base(vocab_size=30_522)
    mesh = AbstractMesh((2, 2, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    replicated = NamedSharding(mesh, PartitionSpec())
    params = sharding.stored(
        mesh, abstract_params(nnx.eval_shape(lambda: build_model(config, None, 0)), replicated)
    )
    embeddings, layer = params["bert"]["embeddings"], params["bert"]["layers"][0]

    def spec(x):
        return tuple(x.sharding.spec)

    whole = ("fsdp", "tensor")
    assert spec(embeddings["word"]["embedding"]) == (None, whole)  # 4 does not divide 30,522
    assert spec(layer["attention"]["qkv"]["kernel"]) == (whole,)
    assert spec(layer["attention"]["output"]["kernel"]) == (("tensor", "fsdp"),)
    assert spec(layer["feed_forward"]["input"]["kernel"]) == (whole,)
    assert spec(layer["feed_forward"]["output"]["kernel"]) == (("tensor", "fsdp"),)
    assert spec(layer["attention_norm"]["scale"]) == (whole,)
    assert spec(params["head"]["bias"]) == ()

    sizes = [(x.size, math.prod(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(params)]
    assert sum(part for _, part in sizes) < 0.251 * sum(size for size, _ in sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "mesh.data=3, mesh.fsdp=1, mesh.tensor=1, but there are 2 devices"),
        ({"fsdp": 4}, "but there are 2 devices"),
        ({"data": -1, "fsdp": -1}, "one may be -1"),
        ({"tensor": 0}, "one may be -1, the others are numbers"),
    ],
)
def test_a_mesh_that_does_not_fit_is_said(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(**sizes)


def test_heads_that_the_mesh_does_not_divide_are_said(dataset, tmp_path):
    """A model of 2 heads on 4 devices, by the command."""
    flags = f"--xla_force_host_platform_device_count=3 {QUICK_COMPILE}"
    options = {"env": {**os.environ, "XLA_FLAGS": flags}}
    said = subprocess.run(
        run_train(tmp_path / "run", dataset, "mesh.tensor=3"),
        **options,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1] == (
        "error: mesh.tensor=3 does not divide model.num_attention_heads=2; take one of 1, 2"
    )


def test_a_width_that_the_mesh_does_not_divide_is_said():
    model = BertConfig(num_attention_heads=12, hidden_size=96, intermediate_size=100)
    with pytest.raises(UserError, match=r"tensor=3 .* model\.intermediate_size=100; .* 1, 2, 4$"):
        sharding.check_width(model, 3)
    sharding.check_width(model, 4)


def test_a_batch_is_placed_as_declared():
    """Rows are divided, arrays of sequences are whole, and an unknown array is an error."""
    mesh = sharding.make_mesh()
    arrays = {name: np.zeros((4, 3), np.int32) for name in ("tokens_BL", "weights_BP", "labels_S")}
    parts = {
        name: array.sharding.shard_shape(array.shape)
        for name, array in sharding.place_batch(mesh, arrays).items()
    }
    assert parts == {"tokens_BL": (2, 3), "weights_BP": (2, 3), "labels_S": (4, 3)}
    with pytest.raises(ValueError, match=r"\['lengths_B', 'seeds_S'\]: not in BATCH_SPECS"):
        sharding.place_batch(
            mesh, arrays | {"seeds_S": arrays["labels_S"], "lengths_B": np.ones(4)}
        )


def test_what_is_left_is_filled():
    assert dict(sharding.make_mesh().shape) == {"data": 2, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(data=1, fsdp=-1).shape) == {"data": 1, "fsdp": 2, "tensor": 1}
