"""MosaicBERT-Base's whole training step, compiled for eight A100s that are not there."""

import json

import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning.compile_only import run_there
from tests.planning import compiled_step as case


def test_base_compiles_for_eight_gpus():
    try:
        step = json.loads(run_there("tests.planning.compiled_step"))
    except UserError as error:
        pytest.skip(str(error))
    layers = case.CONFIG.num_hidden_layers
    assert step["kernels"] == {
        "alibi_attention_forward": layers,
        "alibi_attention_backward": layers,
        "residual_norm_forward": 2 * layers + 1,
        "residual_norm_backward": 2 * layers + 1,
        "geglu_forward": layers,
        "geglu_backward": layers,
        "cross_entropy_and_gradient": 1,
    }
    # Gradients and metrics are added up; nothing else passes between the devices.
    assert step["collectives"]
    assert set(step["collectives"]) <= {"all-reduce", "all-reduce-start"}
    # Parameters and two moments, float32, whole on each device.
    assert step["lasting_bytes"] == pytest.approx(12 * 137_400_384, rel=0.01)
    assert step["temporary_bytes"] < 10e9
