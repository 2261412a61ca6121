"""The choice of a kernel's backend."""

import logging
import types

import jax
import pytest

from pallas_kernels import backends
from pallas_kernels.backends import Target, choose_backend

A100 = Target("gpu", "NVIDIA A100-SXM4-80GB", (8, 0))
T4 = Target("gpu", "Tesla T4", (7, 5))
AMD = Target("gpu", "AMD Instinct MI250X")
CPU = Target("cpu", "cpu")


@pytest.mark.parametrize(
    ("target", "why_not_triton", "chosen", "reason"),
    [
        (A100, None, "triton", "the device is a NVIDIA A100-SXM4-80GB"),
        (A100, "triton has no wings", "xla", "triton has no wings"),
        (T4, None, "xla", "triton's kernels need compute capability 8.0, Tesla T4 has 7.5"),
        (AMD, None, "xla", "AMD Instinct MI250X is not an NVIDIA GPU of known compute capability"),
        (CPU, None, "xla", "the device is a cpu"),
        (CPU, "triton has no wings", "xla", "the device is a cpu"),
    ],
)
def test_auto_says_once_what_it_takes_and_why(caplog, target, why_not_triton, chosen, reason):
    choose_backend.cache_clear()
    case = (target, why_not_triton)
    with caplog.at_level(logging.INFO, logger=backends.__name__):
        assert [choose_backend("fly", "auto", *case) for _ in range(2)] == [chosen] * 2
    (message,) = [record.message for record in caplog.records]
    assert f"fly: auto takes {chosen}, as {reason}" in message
    assert choose_backend("fly", chosen, *case) == chosen
    if chosen == "xla":
        with pytest.raises(ValueError, match=f"'triton' can't serve: {reason}"):
            choose_backend("fly", "triton", *case)


def test_interpret_can_what_triton_can_on_any_device():
    assert choose_backend("fly", "interpret", CPU, None) == "interpret"
    with pytest.raises(ValueError, match="'interpret' can't serve: triton has no wings"):
        choose_backend("fly", "interpret", A100, "triton has no wings")


def test_a_backend_that_does_not_exist_is_said():
    with pytest.raises(ValueError, match=r"'cuda' is not one of auto, triton, xla, interpret$"):
        choose_backend("fly", "cuda", A100, None)
    assert choose_backend("fly", "wings", CPU, None, ("wings",)) == "wings"


@pytest.mark.parametrize(
    ("capability", "expected"), [("8.9", (8, 9)), ("12.0", (12, 0)), ("gfx90a", None), (None, None)]
)
def test_a_device_says_what_it_is(capability, expected):
    device = types.SimpleNamespace(platform="gpu", device_kind="a card")
    if capability:
        device.compute_capability = capability
    assert Target.of(device) == Target("gpu", "a card", expected)


def test_the_target_is_the_device_that_is_compiled_for():
    assert backends.target() == Target.of(jax.devices()[0])
    there = types.SimpleNamespace(platform="gpu", device_kind="a card", compute_capability="9.0")
    with backends.compiling_for(there):
        assert backends.target() == Target("gpu", "a card", (9, 0))
    assert backends.target().platform == "cpu"
