"""User mistakes: one line, no traceback."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: schedulers know to start the same command again


LESS_MEMORY = (
    "to need less in training, lower train.microbatch_tokens or set it to auto, set "
    "train.activation_checkpointing=True, or take shorter rows or a smaller model (finetuning: a "
    "lower train.batch_size or data.max_seq_len)"
)


class UserError(Exception):
    """What was wrong, where (file, line, key), and what to do, in one line.

    The commands print the message without a traceback and exit with status 2.
    """


class Interrupted(Exception):  # noqa: N818  it is no error
    """A run that was asked to stop has saved, and the same command resumes from there.

    train.py prints the message and exits with status TRY_AGAIN.
    """


@contextlib.contextmanager
def explained(on_interrupt: str) -> Iterator[None]:
    """Runs a command's work; ends the process with one line where it fails.

    Args:
      on_interrupt: what to say on Ctrl-C, if the KeyboardInterrupt says nothing itself.

    Raises:
      SystemExit: status 2 after a UserError, an error of the file system, or where memory or a
        device is lacking; 75 after Interrupted, 130 after Ctrl-C, 0 when the reader of the output
        has seen enough.
    """
    try:
        yield
    except UserError as error:
        _end(f"error: {error}", 2)
    except Interrupted as stopped:
        _end(str(stopped), TRY_AGAIN)
    except UnicodeDecodeError as error:
        _end(f"error: the input is not {error.encoding}: {error.reason}", 2)
    except KeyboardInterrupt as error:
        _end(str(error) or on_interrupt, 130)
    except BrokenPipeError:
        # Such as head; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _end(f"error: {error.filename or 'a file'}: {error.strerror or error}", 2)
    except (RuntimeError, AssertionError, MemoryError) as error:
        line = _of_the_machine(error)
        if line is None:
            raise
        _end(f"error: {line}", 2)


def _of_the_machine(error: Exception) -> str | None:
    """What the machine lacks, if that is what made JAX or NumPy raise."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        found = re.search(r"llocat\w+ ([\d.]+ ?\w*[bB]\w*)", text)
        wanted = f": {found[1]} more could not be had" if found else ""
        return f"out of memory{wanted}; {LESS_MEMORY}"
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.endswith("xla_bridge.py"):
        platforms = os.environ.get("JAX_PLATFORMS")
        asked = f"JAX_PLATFORMS={platforms} asks for" if platforms else "JAX finds"
        return (
            f"{asked} a device that is not there or that JAX can't use"
            f"{f' ({text})' if text else ''}; unset JAX_PLATFORMS or set it to cpu, or, on a "
            "machine with a GPU, install JAX with its plugin: pip install 'jax[cuda12]'"
        )
    return None


_NAMES: dict[str, str] = {}  # what the user calls a place, by its local path


def call_it(path: object, name: object) -> None:
    """Has a local path, as that of a copy, called by another name when a command ends with it."""
    _NAMES[str(path)] = str(name)


def _end(line: str, status: int) -> None:
    for path, name in _NAMES.items():
        line = line.replace(path, name)
    # One, whatever the names and values in it hold.
    print(" ".join(line.splitlines()), file=sys.stderr)
    sys.exit(status)
