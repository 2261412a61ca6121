"""Memory is compared with what there is before anything runs, and its lack is one line."""

import jax
import jax.numpy as jnp
import pytest

from mosaicbert_jax.errors import UserError, explained
from mosaicbert_jax.training import memory


@pytest.fixture(scope="module")
def program():
    return jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256))).compile()


def test_a_program_larger_than_the_machine_is_refused(program, monkeypatch):
    memory.check_host_holds(program, "a step")
    monkeypatch.setattr(memory, "available_on_host", lambda: 10_000)
    with pytest.raises(
        UserError, match=r"a step needs .* MB more memory.* has 0\.0 MB left"
    ) as caught:
        memory.check_host_holds(program, "a step")
    assert "train.microbatch_tokens" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 98765432100 bytes."),
        jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 98765432100 bytes."
        ),
        MemoryError("Unable to allocate 7.45 GiB for an array"),
    ],
)
def test_out_of_memory_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as ended, explained(""):
        raise error
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("error: out of memory: ")
    assert "98765432100 bytes" in told or "7.45 GiB" in told
    assert "train.microbatch_tokens" in told


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="something else"), explained(""):
        raise RuntimeError("something else")
