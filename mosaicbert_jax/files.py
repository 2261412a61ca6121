"""Files and folders that are there whole or not at all, whatever kills their writer."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file and waits until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's text whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    write_synced(temporary, text.encode())
    temporary.replace(path)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` when the block ends, or goes when it fails.

    What processes that were killed on this machine left beside `output` is removed first.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)
    partial = output.parent / f"{_partial_prefix(output)}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        _sync_folder(partial)
        os.replace(partial, output)  # over an empty folder at most
        _sync_folder(output.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _partial_prefix(output: Path) -> str:
    return f".{output.name}.partial-{socket.gethostname()}-"


def _remove_leftovers(output: Path) -> None:
    prefix = _partial_prefix(output)
    for folder in output.parent.iterdir():
        owner = folder.name.removeprefix(prefix)
        if owner == folder.name or not owner.isdecimal():
            continue
        # A folder in this process's name is from a run that had the same id before.
        if int(owner) == os.getpid() or not _is_running(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, in another user's name
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
