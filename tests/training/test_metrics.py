"""What becomes of a run's rows when the disk is full: /dev/full is one that always is."""

import json
import pathlib

import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining
from mosaicbert_jax.training.metrics import METRICS_FILE, MetricsWriter

pytestmark = pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")


@pytest.fixture
def said():
    return []


@pytest.fixture
def writer(tmp_path, said):
    return MetricsWriter(tmp_path, pretraining(BertConfig()), step=0, say=said.append)


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / METRICS_FILE).read_text().splitlines()]


def full():
    return open("/dev/full", "ab", buffering=0)


def test_rows_wait_until_there_is_room(writer, tmp_path, said):
    with writer:
        writer.write({"step": 1, "loss": 5.0})
        disk, writer.file = writer.file, full()
        writer.write({"step": 2, "loss": 5.0})
        writer.event(2, "saving")
        assert len(said) == 1
        path = tmp_path / METRICS_FILE
        assert said[0].startswith(f"{path} cannot be written (No space left on device); it is")
        writer.file.close()
        writer.file = disk
        assert steps(tmp_path) == [1]
        writer.write({"step": 3, "loss": 5.0})
        assert steps(tmp_path) == [1, 2, 2, 3]
    assert len(said) == 1


def test_what_is_lost_at_the_end_is_told(writer, tmp_path, said):
    with writer:
        writer.write({"step": 1})
        writer.file.close()
        writer.file = full()
        writer.write({"step": 2})
        writer.write({"step": 3})
    assert said[-1] == f"The last 2 rows of {tmp_path / METRICS_FILE} are lost."
    assert steps(tmp_path) == [1]


def test_tensorboard_that_cannot_be_written_costs_nothing_else(writer, tmp_path, said):
    with writer:
        writer.tensorboard._py_recordio_writer._writer = full()
        for step in range(1, 100):
            writer.write({"step": step, "loss": 5.0})
    assert steps(tmp_path) == list(range(1, 100))
    assert len(said) == 1


def test_a_row_that_a_nearly_full_disk_takes_in_parts_is_whole(writer, tmp_path):
    class Reluctant:
        """Takes five bytes at a time."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:5])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with writer:
        writer.file = Reluctant(writer.file)
        writer.write({"step": 1, "loss": 5.0})
    assert steps(tmp_path) == [1]
