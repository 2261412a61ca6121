"""Which backend auto takes for each function with kernels, and what it says of that."""

import logging
import re

import pytest

from pallas_kernels.alibi_attention import api as attention
from pallas_kernels.geglu_linear import api as geglu
from pallas_kernels.platform import choose_backend
from pallas_kernels.residual_norm import api as norm


@pytest.mark.parametrize(
    ("api", "case", "chosen", "reason"),
    [
        (attention, ("gpu", 64, "bfloat16", False), "triton", "the device is a gpu"),
        (attention, ("gpu", 64, "bfloat16", True), "xla", "triton has no attention dropout"),
        (attention, ("gpu", 48, "bfloat16", False), "xla", r"sizes \(32, 64, 128\), not 48"),
        (attention, ("gpu", 64, "float64", False), "xla", "bfloat16, float16, not float64"),
        (attention, ("cpu", 64, "float32", False), "xla", "the device is a cpu"),
        (geglu, ("gpu", 3072, "bfloat16"), "triton", "the device is a gpu"),
        (geglu, ("gpu", 96, "bfloat16"), "xla", "multiples of 64, not 96"),
        (geglu, ("gpu", 3072, "float64"), "xla", "bfloat16, float16, not float64"),
        (geglu, ("cpu", 3072, "float32"), "xla", "the device is a cpu"),
        (norm, ("gpu", 768, "bfloat16", "float32"), "triton", "the device is a gpu"),
        (norm, ("gpu", 768, "bfloat16", "bfloat16"), "triton", "the device is a gpu"),
        (norm, ("gpu", 96, "bfloat16", "float32"), "xla", "of 64 up to 4096, not 96"),
        (norm, ("gpu", 8192, "bfloat16", "float32"), "xla", "of 64 up to 4096, not 8192"),
        (norm, ("gpu", 768, "float64", "float32"), "xla", "bfloat16, float16, not float64"),
        (norm, ("gpu", 768, "float32", "bfloat16"), "xla", "as float32 or float32, not bfloat"),
        (norm, ("cpu", 768, "float32", "float32"), "xla", "the device is a cpu"),
    ],
)
def test_auto_says_once_what_it_takes_and_why(caplog, api, case, chosen, reason):
    api._choose.cache_clear()
    with caplog.at_level(logging.INFO, logger=choose_backend.__module__):
        assert [api._choose("auto", *case) for _ in range(2)] == [chosen] * 2
    (message,) = [record.message for record in caplog.records]
    function = api.__name__.split(".")[1]
    assert re.fullmatch(f"{function}: auto takes {chosen}, as .*{reason}.*", message)
    assert api._choose(chosen, *case) == chosen
    if chosen == "xla":
        with pytest.raises(ValueError, match=f"'triton' can't serve: .*{reason}"):
            api._choose("triton", *case)
