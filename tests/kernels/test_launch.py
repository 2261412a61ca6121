"""Launch parameters of the attention kernels: defaults, and what was measured here."""

import jax.numpy as jnp
import pytest

from pallas_kernels.alibi_attention import launch as launches
from pallas_kernels.alibi_attention.launch import AttentionLaunch, Launch
from pallas_kernels.backends import DTYPES, Target

H100 = Target("gpu", "NVIDIA H100 80GB HBM3", (9, 0))
TUNED = AttentionLaunch(Launch(128, 64, 8, 2), Launch(64, 32, 4, 1))


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [32, 64, 128])
def test_each_kind_of_card_has_a_default(head_size, dtype):
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        target = Target("gpu", "a card", capability)
        found = launches.launch_for(target, 512, head_size, dtype)
        assert found == launches.default_launch(target, head_size, dtype)
        for direction in (found.forward, found.backward):
            assert direction.block % launches.RANGE_BLOCK == 0


def test_what_was_measured_here_is_taken_for_rows_like_it(cache_folder):
    default = launches.launch_for(H100, 512, 64, jnp.bfloat16)
    key = launches.cache_key(H100.device_kind, 512, 64, jnp.bfloat16)
    launches.store(launches.cache_path(), {key: TUNED})
    assert str(launches.cache_path()).startswith(str(cache_folder))
    for length, expected in ((512, TUNED), (257, TUNED), (256, default), (513, default)):
        assert launches.launch_for(H100, length, 64, jnp.bfloat16) == expected
    assert launches.launch_for(H100, 512, 32, jnp.bfloat16) == default
    assert launches.launch_for(H100, 512, 64, jnp.float16) == default
    assert launches.launch_for(H100, 512, 64, jnp.bfloat16, rotates=True) == default
    key = launches.cache_key(H100.device_kind, 512, 64, jnp.bfloat16, rotates=True)
    launches.store(launches.cache_path(), {key: default})
    assert launches.launch_for(H100, 512, 64, jnp.bfloat16) == TUNED
    another = Target("gpu", "NVIDIA H200", (9, 0))
    assert launches.launch_for(another, 512, 64, jnp.bfloat16) == default


def test_the_cache_keeps_what_is_there():
    path = launches.cache_path()
    launches.store(path, {"one": TUNED})
    launches.store(path, {"two": TUNED})
    assert launches.read_cache(path) == {"one": TUNED, "two": TUNED}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["{", "[]", '{"key": 1}', '{"key": {"forward": {}}}'])
def test_a_damaged_cache_is_named(text):
    path = launches.cache_path()
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path} holds no launch parameters .*: delete it"):
        launches.launch_for(H100, 512, 64, jnp.bfloat16)


@pytest.mark.parametrize("head_size", [32, 64, 128])
@pytest.mark.parametrize("backward", [False, True])
def test_candidates_hold_the_default_and_no_double(head_size, backward):
    found = launches.candidates(head_size, jnp.bfloat16, backward=backward)
    assert len(set(found)) == len(found) > 5
    default = launches.default_launch(H100, head_size, jnp.bfloat16)
    assert (default.backward if backward else default.forward) in found


@pytest.mark.parametrize("values", [(16, 64, 4, 1), (64, 48, 4, 1), (64, 64, 3, 1), (64, 64, 4, 0)])
def test_what_no_kernel_can_have_is_refused(values):
    with pytest.raises(ValueError, match="must be"):
        Launch(*values)
