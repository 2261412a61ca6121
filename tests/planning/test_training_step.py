"""MosaicBERT-Base's whole training step, compiled for eight A100s that are not there."""

import collections
import json

import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning.compile_only import run_there
from tests.planning import compiled_step as case


def compiled(*kind: str):
    """What `compiled_step` prints; without the environment to compile in, the test is skipped."""
    try:
        return json.loads(run_there("tests.planning.compiled_step", *kind))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.one_end
def test_a_sharded_step_gathers_parameters_and_scatters_gradients():
    step = compiled("sharded")
    assert step["lasting_bytes"] == pytest.approx(12 * step["parameters"] / 8, rel=0.01)
    moved = collections.defaultdict(int)
    for collective in step["collectives"]:
        assert collective["members"] == 8
        assert not collective["with_rows"]  # no activations
        moved[collective["kind"]] += collective["bytes"] * collective["times"]
    assert set(moved) == {"all-gather", "reduce-scatter", "all-reduce"}
    # Each parameter once, at most in float32; what is used in bfloat16 alone may be cast before.
    assert 2 * step["parameters"] < moved["all-gather"] < 4.01 * step["parameters"]
    # Each gradient once, and the table's twice, as the decoder's and the embedding's.
    gradients = step["parameters"] + step["table"]
    assert moved["reduce-scatter"] == pytest.approx(4 * gradients, rel=0.01)
    # The biases that kernels sum, and the metrics.
    assert moved["all-reduce"] < 0.001 * moved["reduce-scatter"]


@pytest.mark.parametrize(
    ("gpu", "position_embedding"),
    [("a100-80gb", "learned"), pytest.param("h100", "alibi", marks=pytest.mark.one_end)],
)
def test_nothing_is_added_in_an_order_that_varies(gpu, position_embedding):
    assert compiled("atomics", gpu, position_embedding) == []


@pytest.mark.one_end
def test_base_compiles_for_eight_gpus():
    step = compiled("replicated")
    layers = case.CONFIG.num_hidden_layers
    assert step["kernels"] == {
        "alibi_attention_forward": layers,
        "alibi_attention_backward": layers,
        "residual_norm_forward": 2 * layers + 1,
        "residual_norm_backward": 2 * layers + 1,
        "geglu_forward": layers,
        "geglu_backward": layers,
        "cross_entropy_and_gradient": 1,
        "sum_rows": 1,
    }
    # Gradients and metrics are added up; nothing else passes between the devices.
    assert step["collectives"]
    assert set(step["collectives"]) <= {"all-reduce", "all-reduce-start"}
    # Parameters and two moments, float32, whole on each device.
    assert step["lasting_bytes"] == pytest.approx(12 * 137_400_384, rel=0.01)
    assert step["temporary_bytes"] < 10.5e9
