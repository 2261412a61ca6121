"""The largest microbatch that fits: searched for with few programs, and chosen by a run."""

import re
import types

import jax
import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.pretraining import microbatch
from mosaicbert_jax.pretraining.configuration import BatchShape
from mosaicbert_jax.pretraining.microbatch import largest_that_fits, sizes_of
from mosaicbert_jax.pretraining.pretraining import Pretraining
from tests.conftest import run_process, run_train

SIZES = sizes_of(1024, 8)  # 1, 2, 4 … 128


def line(rows: int) -> int:
    """100 bytes, and 10 a row."""
    return 100 + 10 * rows


@pytest.mark.parametrize(
    ("limit", "first", "rows", "measured"),
    [
        (line(128), 128, 128, [128]),  # all at once: one program tells
        (line(128), 8, 128, [8, 32, 128]),
        (line(70), 8, 64, [8, 32, 64]),
        (line(40), 8, 32, [8, 32]),
        (line(9), 8, 8, [8, 32]),  # 32 is too large, and the line says that 16 is
        (line(5), 8, 4, [8, 2, 4]),
        (line(5), 128, 4, [128, 32, 4]),
        (line(1), 1, 1, [1, 4]),
        (99, 8, None, [8, 2, 1]),
    ],
)
def test_two_sizes_and_a_check_find_it(limit, first, rows, measured):
    seen = []

    def bytes_of(size: int) -> int:
        seen.append(size)
        return line(size)

    found = largest_that_fits(SIZES, bytes_of, limit, first)
    assert (found.rows, seen) == (rows, measured)
    assert found.measured == {size: line(size) for size in measured}


def test_what_bends_upwards_is_checked_until_it_fits():
    found = largest_that_fits(SIZES, lambda rows: rows**2, 20**2, 4)
    # 4 and 16 predict 64 - then 32, then 16, which is known to fit.
    assert found.rows == 16
    assert max(found.measured) < 64
    assert found.measured[found.rows] <= found.limit


def test_sizes_divide_a_devices_share():
    assert sizes_of(96, 8) == [1, 2, 3, 4, 6, 12]


@pytest.fixture
def run(dataset, tmp_path):
    """A run on two devices, of 8 rows of 128 tokens each, that leaves the microbatch to itself."""
    from configs.tiny import get_config

    config = get_config()
    config.data.path = str(dataset)
    config.train.batch_tokens = 16 * 128
    config.train.microbatch_tokens = "auto"
    run = Pretraining.prepare(config, tmp_path / "run")
    with jax.set_mesh(run.mesh):
        yield run


class Uncompiled:
    """Stands for a step that would need 1 MB for each row of a microbatch."""

    def __init__(self, run: Pretraining):
        self._rows = run.microbatch_rows

    def lower(self, state, batch, rate, key):
        assert batch["tokens_BL"].shape == (16, 128)
        assert state.step.shape == rate.shape == key.shape == ()
        return self

    def compile(self):
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=300_000,
            output_size_in_bytes=250_000,
            alias_size_in_bytes=250_000,
            temp_size_in_bytes=self._rows * 1_000_000 - 300_000,
        )


def test_a_run_takes_the_most_that_fits(run, monkeypatch):
    monkeypatch.setattr(Pretraining, "train_step", property(lambda run: Uncompiled(run)))
    monkeypatch.setattr(microbatch, "_FIRST_TOKENS", 128)
    monkeypatch.setattr(microbatch, "device_memory", lambda: 3_000_000)
    assert run.shape == BatchShape(16, microbatch_rows=1, first_rows=16)  # until it is settled
    said = []
    settled = run.settled(said.append)
    assert settled.microbatch_rows == settled.shape.microbatch_rows == 2
    assert settled.shape.rows == 16
    assert said == [
        "Choosing the microbatch: compiling for 1 rows of 128 tokens.",
        "Choosing the microbatch: compiling for 4 rows of 128 tokens.",
        "Choosing the microbatch: compiling for 2 rows of 128 tokens.",
        "microbatch: 2 rows of 128 tokens a device (train.microbatch_tokens=256), the most that "
        "divide its 8 and fit 3.0 MB a device less 10%; compiled: 1 rows 1.0 MB, 2 rows 2.0 MB, "
        "4 rows 4.0 MB",
    ]
    monkeypatch.setattr(microbatch, "device_memory", lambda: 1_100_000)
    with pytest.raises(UserError, match=r"auto: not one row of 128 tokens fits 1\.1 MB a device"):
        run.settled(said.append)


def test_a_number_is_taken_as_it_is(run):
    run.config.train.microbatch_tokens = 256
    run = Pretraining.prepare(run.config, run.folder)
    assert run.settled(pytest.fail) is run
    assert run.microbatch_rows == 2


@pytest.mark.parametrize("value", ["'most'", "1.5", "0", "-1"])
def test_what_is_neither_number_nor_auto_is_refused(value, dataset, tmp_path):
    from configs.tiny import get_config

    config = get_config()
    config.data.path = str(dataset)
    config.train.microbatch_tokens = eval(value)
    with pytest.raises(UserError, match=r"train\.microbatch_tokens="):
        Pretraining.prepare(config, tmp_path)


def test_the_host_tells_its_memory():
    assert 10**8 < microbatch.device_memory() < 10**13


@pytest.mark.one_end
def test_train_auto(dataset, tmp_path):
    """From the command line, with what the compiled step really needs."""
    settings = ("train.microbatch_tokens=auto", "train.duration=2ba", "model.num_hidden_layers=1")
    done = run_process(run_train(tmp_path / "run", dataset, *settings))
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"microbatch: 8 rows of 128 .*; compiled: 8 rows ([\d.]+) MB$", done.stdout, re.M
    )
    assert 1 < float(found[1]) < 100
    assert "8 rows of 128 tokens in 1 " in done.stdout
