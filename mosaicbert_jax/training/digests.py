"""What makes damage to a checkpoint known: the digest of each of its files, kept in it."""

import hashlib
import json
import pathlib

from mosaicbert_jax.files import write_atomically

DIGESTS_FILE = "digests.json"
_LATER = "_CHECKPOINT_METADATA"  # Orbax notes the time of the commit there, after that


def seal(folder: pathlib.Path) -> None:
    """Writes the digests of all files of a checkpoint that is about to be committed."""
    found = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
    write_atomically(folder / DIGESTS_FILE, json.dumps(found, indent=0, sort_keys=True) + "\n")


def damage(folder: pathlib.Path, part: str = "") -> str | None:
    """The first thing that is wrong with a folder that was sealed; None: it is whole.

    Args:
      part: a folder in it, whose files alone are looked at; the default is all.
    """
    path = folder / DIGESTS_FILE
    try:
        expected = json.loads(path.read_text())
    except FileNotFoundError:
        return f"{DIGESTS_FILE} is missing"
    except (OSError, ValueError):
        return f"{DIGESTS_FILE} cannot be read"
    if not isinstance(expected, dict):
        return f"{DIGESTS_FILE} cannot be read"
    for name, digest in expected.items():
        if part and not name.startswith(f"{part}/"):
            continue
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            return f"{DIGESTS_FILE} names files outside of the checkpoint"
        try:
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = folder.rglob("*")
    return sorted(path for path in paths if path.is_file() and path.name != _LATER)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
