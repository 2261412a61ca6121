"""An interrupted preparation resumes, and ends with the bytes of one that was not."""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation import assembly, preparation, unfinished
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.preparation.shards import ShardWriter
from mosaicbert_jax.text import blocks
from tests.preparation.preparation_cases import assert_whole, contents, silent

SMALL = {"BLOCK_BYTES": (blocks, 200), "SHARD_BYTES": (assembly, 500)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little text has many blocks and shards."""
    for name, (module, size) in SMALL.items():
        monkeypatch.setattr(module, name, size)


@pytest.fixture
def options(tmp_path) -> PrepareOptions:
    """Three files with duplicates in one and between them, and a line that is broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(0)
    words = [f"word{i}" for i in range(40)]
    texts = [" ".join(random.choice(words, 12)) for _ in range(150)]
    for i, name in enumerate("abc"):
        some = texts[40 * i : 40 * i + 70]  # 30 are in the next file too
        lines = [json.dumps({"text": text}) for text in [*some, some[3], ""]]
        lines.insert(20, "{broken")
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return PrepareOptions(
        (str(folder),),
        str(tmp_path / "out"),
        validation_fraction=0.3,
        vocab_size=120,
        on_error="skip",
        workers=1,
    )


@pytest.fixture
def expected(options, tmp_path) -> dict[str, str]:
    """The files of a preparation that nothing interrupted."""
    metadata = prepare(dataclasses.replace(options, output=str(tmp_path / "whole")), silent)
    assert len(metadata.splits["train"].shards) > 4
    assert len(metadata.splits["validation"].shards) > 4
    assert metadata.dropped_duplicates > 60
    assert metadata.skipped == {"not JSON": 3}
    assert metadata.dropped_empty == 3
    assert metadata.sources[0].files == 3
    return contents(tmp_path / "whole")


def partial(options: PrepareOptions) -> Path:
    return unfinished.partial_folder(Path(options.output))


def die_at(function, call: int, before: bool):
    """The function, but the process ends at its `call`-th call, before or after the work."""
    calls = 0

    def wrapped(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if before and calls == call:
            os._exit(9)
        result = function(*arguments, **keywords)
        if calls == call:
            os._exit(9)
        return result

    return wrapped


def run_and_die(options: PrepareOptions, owner: str, name: str, call: int, before: bool) -> None:
    for size_name, (module, size) in SMALL.items():
        setattr(module, size_name, size)
    holder = {
        "writer": ShardWriter,
        "workspace": unfinished.Workspace,
        "preparation": preparation,
        "os": os,
        "shutil": shutil,
    }
    setattr(holder[owner], name, die_at(getattr(holder[owner], name), call, before))
    prepare(options, silent)


def killed(options: PrepareOptions, *where) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=run_and_die, args=[options, *where]
    )
    process.start()
    process.join()
    assert process.exitcode == 9


@pytest.mark.parametrize(
    "where",
    [
        [("writer", "flush", 4, True), ("writer", "flush", 5, False)],  # twice, between two shards
        [("workspace", "save", 1, False)],  # the tokenizer is trained
        [("workspace", "save", 4, True), ("workspace", "save", 3, False)],
        [("os", "replace", 3, True)],  # while the progress is written
        [("workspace", "check_unchanged", 1, True)],  # all shards are there
        [("preparation", "write_synced", 3, False)],  # and dataset.json
        [("shutil", "rmtree", 2, True)],  # the output is there, the workspace too
    ],
)
def test_killed_and_run_again_gives_the_same_bytes(options, expected, where):
    for each in where:
        killed(options, *each)
        assert partial(options).exists()
    was_finished = Path(options.output).exists()
    said: list[str] = []
    metadata = prepare(options, said.append)
    assert contents(options.output) == expected
    assert not partial(options).exists()
    if not was_finished:
        assert "resuming the unfinished preparation" in said[0]
        # What is told counts all, not only what was done since.
        assert any("skipped what can't be read: 3 not JSON" in line for line in said)
    assert_whole(options.output)
    assert metadata == DatasetMetadata.load(options.output)


def test_inputs_may_be_grouped_in_another_way(options, expected, tmp_path, monkeypatch):
    """The files count, not how they were named; the counts of documents follow the names."""
    with pytest.raises(KeyboardInterrupt):
        interrupted(options, monkeypatch, saves=5)
    by_name = dataclasses.replace(
        options, inputs=tuple(str(tmp_path / "in" / f"{name}.jsonl") for name in "abc")
    )
    metadata = prepare(by_name, silent)
    assert [source.documents for source in metadata.sources] == [72, 72, 72]
    for name, digest in contents(options.output).items():
        assert name == "dataset.json" or digest == expected[name]


def test_an_output_that_is_gone_is_made_anew(options, expected):
    """After a kill at the very end; what is left of its workspace is of no use."""
    killed(options, "shutil", "rmtree", 2, True)
    shutil.rmtree(options.output)
    killed(options, "workspace", "save", 1, True)  # nothing is finished
    prepare(options, silent)
    assert contents(options.output) == expected


def test_the_bar_begins_where_the_preparation_goes_on(options, expected, monkeypatch):
    """Or what was done before would count as done in no time, and the ETA be far too short."""
    with pytest.raises(KeyboardInterrupt):
        interrupted(options, monkeypatch, saves=5)
    begun = json.loads((partial(options) / "progress.json").read_text())["progress"]["files"]
    assert begun
    starts = []

    class Bar(assembly.ByteProgress):
        def __init__(self, doing, total, start=0):
            starts.append(start)
            super().__init__(doing, total, start)

    monkeypatch.setattr(assembly, "ByteProgress", Bar)
    prepare(options, silent)
    assert starts == [sum(size for size, _ in begun)]


def test_a_folder_of_records_that_changed_is_known(tmp_path):
    record = tmp_path / "x-train.array_record-00000-of-00001"
    record.write_text("a")
    os.utime(record, ns=(1, 1))
    before = unfinished.FileStamp.of(tmp_path)
    assert unfinished.FileStamp.of(tmp_path) == before
    os.utime(record, ns=(2, 2))
    assert unfinished.FileStamp.of(tmp_path) != before
    record.write_text("ab")
    os.utime(record, ns=(1, 1))
    assert unfinished.FileStamp.of(tmp_path) != before


def test_finished_work_is_not_done_again(options, expected, monkeypatch):
    killed(options, "workspace", "check_unchanged", 1, True)

    def never(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(preparation, "train_tokenizer", never)
    monkeypatch.setattr(preparation.Encoder, "__call__", never)
    prepare(options, silent)
    assert contents(options.output) == expected


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bytes(options, expected, monkeypatch, workers):
    monkeypatch.setattr("mosaicbert_jax.preparation.inputs._BYTES_WORTH_A_WORKER", 100)
    prepare(dataclasses.replace(options, workers=workers), silent)
    assert contents(options.output) == expected


def interrupted(options: PrepareOptions, monkeypatch, saves: int, error=KeyboardInterrupt) -> None:
    """A preparation that ends with an error at the given save."""
    original = unfinished.Workspace.save
    calls = []

    def fail(self, *arguments):
        calls.append(None)
        if len(calls) == saves:
            raise error
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Workspace, "save", fail)
        prepare(options, silent)


def test_ctrl_c_keeps_what_is_finished(options, expected, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        interrupted(options, monkeypatch, saves=3)
    assert not Path(options.output).exists()
    prepare(options, silent)
    assert contents(options.output) == expected


def test_a_full_disk_is_a_user_error_and_loses_nothing(options, expected, monkeypatch):
    full = OSError(28, "No space left on device")
    with pytest.raises(UserError, match=r"No space left on device.*run it again to resume"):
        interrupted(options, monkeypatch, saves=4, error=full)
    prepare(options, silent)
    assert contents(options.output) == expected


def test_an_error_before_anything_is_finished_leaves_nothing(options, tmp_path):
    options = dataclasses.replace(options, on_error="stop")
    with pytest.raises(UserError, match=r"a\.jsonl:21: not JSON"):
        prepare(options, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    given = dataclasses.replace(
        options, tokenizer=str(tmp_path / "vocab.txt"), vocab_size=None, validation_fraction=0.99999
    )
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "word"}')
    given = dataclasses.replace(given, inputs=(str(tmp_path / "in" / "a.jsonl"),))
    with pytest.raises(UserError, match="no training document is left"):
        prepare(given, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "vocab.txt"}


def test_other_options_and_other_inputs_are_refused(options, tmp_path, monkeypatch, expected):
    with pytest.raises(KeyboardInterrupt):
        interrupted(options, monkeypatch, saves=3)
    before = contents(partial(options) / "data")
    for change, message in (
        ({"vocab_size": 99}, r"unfinished preparation with vocab_size = 120 .* 99 is given"),
        ({"on_error": "stop"}, "on_error = 'skip'"),
        ({"inputs": options.inputs * 2}, "of 3 files is there, and 6 are given"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(dataclasses.replace(options, **change), silent)
    last = tmp_path / "in" / "c.jsonl"
    os.utime(last, ns=(1, 1))
    with pytest.raises(
        UserError, match=r"c\.jsonl: .*no longer the same.* remove .*\.out\.partial"
    ):
        prepare(options, silent)
    assert contents(partial(options) / "data") == before


def test_a_file_that_was_not_begun_may_be_mended(options, tmp_path, monkeypatch, expected):
    """With a tokenizer that was given; one that was trained has seen every file."""
    last = tmp_path / "in" / "c.jsonl"
    text = last.read_text()
    given = dataclasses.replace(
        options,
        tokenizer=str(tmp_path / "whole" / "tokenizer.json"),
        vocab_size=None,
        inputs=tuple(str(tmp_path / "in" / f"{name}.jsonl") for name in "abc"),
    )
    whole = prepare(dataclasses.replace(given, output=str(tmp_path / "given")), silent)
    last.write_text(text.replace("broken", "broken in another way"))
    with pytest.raises(KeyboardInterrupt):
        interrupted(given, monkeypatch, saves=2)
    last.write_text(text)
    assert prepare(given, silent).digest == whole.digest
    # … but one that was begun may not.
    shutil.rmtree(given.output)
    with pytest.raises(KeyboardInterrupt):
        interrupted(given, monkeypatch, saves=2)
    os.utime(tmp_path / "in" / "a.jsonl", ns=(1, 1))
    with pytest.raises(UserError, match=r"a\.jsonl: .*no longer the same"):
        prepare(given, silent)


def test_an_input_that_changes_meanwhile(options, tmp_path, monkeypatch):
    original = preparation.train_tokenizer

    def change(*arguments):
        with (tmp_path / "in" / "b.jsonl").open("a") as file:
            file.write('{"text": "more"}\n')
        return original(*arguments)

    monkeypatch.setattr(preparation, "train_tokenizer", change)
    with pytest.raises(UserError, match=r"b\.jsonl: the file changed while it was being read"):
        prepare(options, silent)
    assert not Path(options.output).exists()


def test_two_at_once(options, tmp_path):
    folder = partial(options)
    folder.mkdir()
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing it"):
            prepare(options, silent)
    prepare(options, silent)  # a lock without its process is none
    with (
        pytest.raises(UserError, match="another process has just prepared it"),
        unfinished.workspace(Path(options.output), {}, []),
    ):
        raise AssertionError("an output that came meanwhile")


def test_a_workspace_that_goes_while_it_is_locked(options, monkeypatch):
    """Its process has finished between our opening the lock and getting it."""
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: shutil.rmtree(partial(options)))
    with pytest.raises(UserError, match="another process has just prepared it"):
        prepare(options, silent)


def test_a_key_is_saved_once(options):
    killed(options, "workspace", "check_unchanged", 1, True)
    files = sorted(partial(options).glob("keys-*.npy"))
    keys = np.concatenate([np.load(path) for path in files])
    assert len(files) > 4
    assert 140 <= len(keys) == len(set(keys.tolist()))


def test_damaged_progress(options, monkeypatch, expected):
    with pytest.raises(KeyboardInterrupt):
        interrupted(options, monkeypatch, saves=3)
    (partial(options) / "progress.json").write_text("{")
    with pytest.raises(UserError, match=r"progress\.json: damaged .*; remove .*\.out\.partial"):
        prepare(options, silent)
