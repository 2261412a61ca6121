"""Files and folders that are written atomically, and locks on them."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mosaicbert_jax.errors import UserError


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file and waits until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's text atomically.

    Raises:
      OSError: names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        write_synced(temporary, text.encode())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def sync(path: Path) -> None:
    """Waits until the disk has a file's bytes, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_hub_name(text: str) -> bool:
    """Whether a path that is not there could be the name of a model on Hugging Face's Hub."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) is not None


def how_to_download(name: str) -> str:
    """What to do where the name of a model on the Hub is given for a folder."""
    return (
        "Nothing is downloaded here; if it is a model on Hugging Face's Hub, fetch it in Python: "
        f"`from huggingface_hub import snapshot_download` and `snapshot_download({name!r}, "
        f"local_dir={name!r})`"
    )


def try_lock(file: IO, *, shared: bool = False) -> bool:
    """Locks an open file until it is closed, however its process ends; False if it is locked."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears atomically when the block ends.

    Yields:
      A folder beside it, to write into.

    Raises:
      UserError: there is something at `path` already, other than an empty folder.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists; give a new folder")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process with this number that was killed
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
        temporary.rename(path)  # which fails if anything is there by now
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(path.parent)
