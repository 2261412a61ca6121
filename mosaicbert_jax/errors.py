"""User mistakes: one line, no traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: schedulers know to start the same command again


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
      on_interrupt: what to say on Ctrl-C.

    Raises:
      SystemExit: status 2 after a UserError or an error of the file system, 75 after Interrupted,
        130 after Ctrl-C, 0 when the reader of the output has seen enough.
    """
    try:
        yield
    except UserError as error:
        _end(f"error: {error}", 2)
    except Interrupted as stopped:
        _end(str(stopped), TRY_AGAIN)
    except UnicodeDecodeError as error:
        _end(f"error: the input is not {error.encoding}: {error.reason}", 2)
    except KeyboardInterrupt:
        _end(on_interrupt, 130)
    except BrokenPipeError:
        # Such as head; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _end(f"error: {error.filename or 'a file'}: {error.strerror or error}", 2)


def _end(line: str, status: int) -> None:
    # One, whatever the names and values in it hold.
    print(" ".join(line.splitlines()), file=sys.stderr)
    sys.exit(status)
