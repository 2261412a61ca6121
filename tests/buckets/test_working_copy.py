"""Working copies of runs in buckets: what is whole in the bucket at any moment, and who has it."""

import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from campaigns.bucket_servers import Rules
from mosaicbert_jax import buckets, lease
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.lease import LEASE_FILE, Lease
from mosaicbert_jax.storage import checkpoint_files, working_copy
from mosaicbert_jax.storage.workdir import InUseError
from mosaicbert_jax.storage.working_copy import read_copy


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(working_copy, "SYNC_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 1.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)


def begin(folder: pathlib.Path, config="{}") -> None:
    """What a run writes first."""
    (folder / "config.json").write_text(config)
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')


def save(folder: pathlib.Path, step: int, content: str = "") -> None:
    """A checkpoint, as Orbax and `seal` leave it."""
    unfinished = folder / "checkpoints" / f"{step}{checkpoint_files.ocp.utils.TMP_DIR_SUFFIX}1"
    (unfinished / "model" / "d").mkdir(parents=True)
    (unfinished / "model" / "d" / "array").write_text(f"{content}{step}" * 1000)
    (unfinished / "progress").mkdir()
    (unfinished / "progress" / "metadata").write_text(f"{step}")
    checkpoint_files.seal(unfinished)
    unfinished.rename(folder / "checkpoints" / str(step))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def delete(folder: pathlib.Path, step: int) -> None:
    shutil.rmtree(folder / "checkpoints" / str(step))


def steps_in(place) -> list[int]:
    names = place.files()
    return sorted(
        int(name.split("/")[1]) for name in names if name.endswith(checkpoint_files.DIGESTS_FILE)
    )


def until(condition, seconds=20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def killed(place):
    """A working copy whose block raises in the end, so that the local folder is kept."""
    with contextlib.suppress(KeyboardInterrupt), working_copy.working_copy(place) as folder:
        yield folder
        raise KeyboardInterrupt


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_run_follows_into_the_bucket_and_back(place, local_cache):
    with working_copy.working_copy(place) as folder:
        begin(folder)
        save(folder, 10)
        until(lambda: steps_in(place) == [10])
        assert '"step": 10' in (place / "metrics.jsonl").read_text()
        save(folder, 20)
        delete(folder, 10)
        until(lambda: steps_in(place) == [20])
        until(lambda: not [name for name in place.files() if name.startswith("checkpoints/10/")])
        save(folder, 30)
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.txt").write_text("a")
        expected = content(folder)
    assert not folder.exists()
    assert LEASE_FILE not in place.files()
    assert {name: (place / name).read_bytes() for name in place.files()} == expected
    shutil.rmtree(local_cache)  # another machine
    with working_copy.working_copy(place) as folder:
        assert content(folder) == expected


def test_what_is_unfinished_or_set_aside_stays_local(place):
    with working_copy.working_copy(place) as folder:
        begin(folder)
        (folder / "checkpoints" / f"5{checkpoint_files.ocp.utils.TMP_DIR_SUFFIX}0").mkdir(
            parents=True
        )
        (
            folder / "checkpoints" / f"5{checkpoint_files.ocp.utils.TMP_DIR_SUFFIX}0" / "x"
        ).write_text("x")
        (folder / "damaged" / "4-1").mkdir(parents=True)
        (folder / "damaged" / "4-1" / "x").write_text("x")
        (folder / ".config.json.77").write_text("half")
        (folder / ".lock").write_text("")
    assert place.files().keys() == {"config.json", "metrics.jsonl"}


def test_the_local_copy_is_used_where_it_is_ahead(store, place):
    with killed(place) as folder:
        begin(folder)
        save(folder, 10)
        until(lambda: steps_in(place) == [10])
    save(folder, 20)  # which was not uploaded
    expected = content(folder)
    store.proxy.requests.clear()
    with working_copy.working_copy(place) as folder:
        assert content(folder) == expected
        until(lambda: steps_in(place) == [10, 20])
    # Another machine has trained since.
    with killed(place) as folder:
        pass
    (place / "tensorboard" / "events.2").write_bytes(b"theirs")
    save(folder, 30, "ours")
    with working_copy.working_copy(place) as folder:
        assert not (folder / "checkpoints" / "30").exists()
        assert (folder / "tensorboard" / "events.2").read_bytes() == b"theirs"
    # Somebody has emptied the folder, to start from scratch.
    with killed(place):
        pass
    buckets.unlink_all(place, place.files())
    with working_copy.working_copy(place) as folder:
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("store", "fault"),
    # gcsfs itself tries for half a minute where it may pass.
    [("s3", "500"), ("s3", "403"), ("s3", "reset"), ("gs", "403")],
    indirect=["store"],
)
def test_a_save_that_fails_is_told_and_tried_again(store, place, fault, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 0.1)
    told = []
    with working_copy.working_copy(place, told.append) as folder:
        begin(folder)
        save(folder, 10)
        until(lambda: steps_in(place) == [10])
        store.proxy.rules = Rules(fault=lambda number, method, path: fault)
        save(folder, 20)
        until(lambda: told, seconds=60)
        assert str(place) in told[0]
        assert told[0].endswith("it is tried again")
        store.proxy.rules = Rules()
        assert steps_in(place) == [10]
        until(lambda: steps_in(place) == [10, 20])
    assert len(told) == 1


def test_a_bucket_that_is_gone_at_the_end(store, place, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 0.1)
    told = []
    copy = working_copy.working_copy(place, told.append)
    folder = copy.__enter__()
    begin(folder)
    save(folder, 10)
    until(lambda: steps_in(place) == [10])
    store.proxy.rules = Rules(fault=lambda number, method, path: "403")
    save(folder, 20)
    with pytest.raises(UserError, match="the same command on this machine uploads it"):
        copy.__exit__(None, None, None)
    store.proxy.rules = Rules()
    assert steps_in(place) == [10]
    with working_copy.working_copy(place) as folder:
        assert (folder / "checkpoints" / "20").is_dir()
    assert steps_in(place) == [10, 20]


def test_two_runs_on_one_workdir_are_refused(place, local_cache, monkeypatch):
    with working_copy.working_copy(place) as folder:
        begin(folder)
        with pytest.raises(InUseError, match="another process of this machine"):
            working_copy.working_copy(place).__enter__()
        monkeypatch.setenv("XDG_CACHE_HOME", str(local_cache / "another machine"))
        monkeypatch.setattr(lease, "_boot", lambda: "another")
        with pytest.raises(UserError, match=f"{place} is in use: process .* renewed its lease"):
            working_copy.working_copy(place).__enter__()
    with working_copy.working_copy(place):
        pass


def test_the_lease_of_a_dead_process_expires(place, monkeypatch, capsys):
    monkeypatch.setattr(lease, "_is_dead", lambda record: False)
    Lease(place).take()
    began = time.monotonic()
    other = Lease(place)
    other.take()
    assert time.monotonic() - began >= lease.EXPIRES_SECONDS
    assert "waiting for up to" in capsys.readouterr().err
    other.check()
    other.release()
    assert not (place / LEASE_FILE).exists()


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(place):
    code = (
        "from mosaicbert_jax import buckets; from mosaicbert_jax.lease import Lease; "
        f"Lease(buckets.place({str(place)!r})).take()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (place / LEASE_FILE).exists()
    began = time.monotonic()
    Lease(place).take()
    assert time.monotonic() - began < lease.EXPIRES_SECONDS


def test_many_at_once_get_one_lease(place, monkeypatch):
    monkeypatch.setattr(lease, "_is_dead", lambda record: False)
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 0.5)
    Lease(place).take()
    got = []

    def attempt():
        try:
            one = Lease(place)
            one.take()
            got.append(one)
        except UserError:
            return

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holders = []
    for one in got:
        try:
            one.check()
            holders.append(one)
        except UserError:
            continue
    assert len(holders) == 1
    assert len(got) == 1


def test_a_run_whose_lease_was_taken_stops(place, monkeypatch):
    heard, told = [], []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        copy = working_copy.working_copy(place, told.append)
        folder = copy.__enter__()
        begin(folder)
        until(lambda: (place / "config.json").exists())
        (place / LEASE_FILE).write_bytes(b'{"id": "another", "host": "h", "process": 1}')
        until(lambda: heard)
        save(folder, 10)
        with pytest.raises(UserError, match="was taken by"):
            copy.__exit__(None, None, None)
        assert steps_in(place) == []
        assert any("this run stops" in line for line in told)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_lease_that_was_deleted_is_renewed(place):
    one = Lease(place)
    one.take()
    (place / LEASE_FILE).unlink()
    one.check()
    assert (place / LEASE_FILE).exists()
    one.release()


def test_a_folder_that_is_no_run_is_refused(place):
    (place / "thesis.txt").write_bytes(b"years of work")
    with pytest.raises(UserError, match="neither empty nor a run"):
        working_copy.working_copy(place).__enter__()
    assert place.files().keys() == {"thesis.txt"}


def test_copies_to_read_have_what_is_needed(store, place):
    with working_copy.working_copy(place) as folder:
        begin(folder)
        for step in (10, 20):
            save(folder, step)
            (folder / "checkpoints" / str(step) / "optimizer").mkdir()
            (folder / "checkpoints" / str(step) / "optimizer" / "x").write_text("large")
    read = read_copy(str(place))
    assert sorted(path.name for path in (read / "checkpoints" / "20").iterdir()) == [
        checkpoint_files.DIGESTS_FILE,
        "model",
        "progress",
    ]
    assert sorted(checkpoint_files.steps_of(read / "checkpoints")) == [10, 20]
    assert not (read / "checkpoints" / "10" / "model").exists()
    store.proxy.requests.clear()
    assert read_copy(str(place)) == read
    assert len(store.proxy.requests) <= 2  # a list
    first = read_copy(place, 10, parts=("model", "average", "optimizer"))
    assert (first / "checkpoints" / "10" / "optimizer" / "x").read_text() == "large"
    none = read_copy(place, parts=())
    assert sorted(path.name for path in none.iterdir()) == ["config.json", "metrics.jsonl"]
    with pytest.raises(UserError, match="nothing is there"):
        read_copy(place / "no")
    assert read_copy(none) == none
