"""Descriptions of GPUs."""

import pytest

from mosaicbert_jax.planning.gpus import GPUS


@pytest.mark.parametrize(("name", "architecture"), [("a100-40gb", "sm_80"), ("h200", "sm_90a")])
def test_architecture(name, architecture):
    assert GPUS[name].architecture == architecture


@pytest.mark.parametrize("name", GPUS)
def test_description_closes_what_it_opens(name):
    text = GPUS[name].description()
    assert text.count("{") == text.count("}")
    assert f'"{GPUS[name].name}"' in text
    assert ("ACCELERATED" in text) == (GPUS[name].compute_capability >= (9, 0))


def test_sizes_are_what_the_names_say():
    assert 40e9 < GPUS["a100-40gb"].memory < 80e9 < GPUS["a100-80gb"].memory
    assert GPUS["h200"].memory > GPUS["h100"].memory
    for gpu in GPUS.values():
        # 1 KiB of each core's shared memory is the driver's.
        assert gpu.shared_memory_per_block == gpu.shared_memory_per_core - 1024
