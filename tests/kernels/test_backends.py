"""The choice of a kernel's backend."""

import logging

import pytest

from pallas_kernels import backends
from pallas_kernels.backends import choose_backend


@pytest.mark.parametrize(
    ("platform", "why_not_triton", "chosen", "reason"),
    [
        ("gpu", None, "triton", "the device is a gpu"),
        ("gpu", "triton has no wings", "xla", "triton has no wings"),
        ("cpu", None, "xla", "the device is a cpu"),
        ("cpu", "triton has no wings", "xla", "the device is a cpu"),
    ],
)
def test_auto_says_once_what_it_takes_and_why(caplog, platform, why_not_triton, chosen, reason):
    choose_backend.cache_clear()
    case = (platform, why_not_triton)
    with caplog.at_level(logging.INFO, logger=backends.__name__):
        assert [choose_backend("fly", "auto", *case) for _ in range(2)] == [chosen] * 2
    (message,) = [record.message for record in caplog.records]
    assert f"fly: auto takes {chosen}, as {reason}" in message
    assert choose_backend("fly", chosen, *case) == chosen
    if chosen == "xla":
        with pytest.raises(ValueError, match=f"'triton' can't serve: {reason}"):
            choose_backend("fly", "triton", *case)


def test_interpret_can_what_triton_can_on_any_device():
    assert choose_backend("fly", "interpret", "cpu", None) == "interpret"
    with pytest.raises(ValueError, match="'interpret' can't serve: triton has no wings"):
        choose_backend("fly", "interpret", "gpu", "triton has no wings")


def test_a_backend_that_is_not_there_is_said():
    with pytest.raises(ValueError, match=r"'cuda' is not one of auto, triton, xla, interpret$"):
        choose_backend("fly", "cuda", "gpu", None)
    assert choose_backend("fly", "wings", "cpu", None, ("wings",)) == "wings"
