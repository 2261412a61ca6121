"""Tells what a run was doing that has come to a halt, by a dead link or a stuck file system."""

import contextlib
import faulthandler
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from mosaicbert_jax.errors import TRY_AGAIN

HANG_FILE = "hang.txt"


@contextlib.contextmanager
def watching(
    recovery: ConfigDict, workdir: pathlib.Path, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Watches a run, if recovery.hang_seconds is set; each process watches itself.

    When nothing has happened for so long, the stacks of all threads go to HANG_FILE in the workdir,
    once for each halt; with recovery.exit_on_hang the process then ends with status 75.

    Args:
      say: takes a line for the terminal.

    Yields:
      What to call whenever something has happened: a step, a compilation, an evaluation.
    """
    if recovery.hang_seconds is None:
        yield lambda: None
        return
    last, told, ended = time.monotonic(), False, threading.Event()

    def happened() -> None:
        nonlocal last, told
        last, told = time.monotonic(), False

    def watch() -> None:
        nonlocal told
        while not ended.wait(recovery.hang_seconds / 10):
            still = time.monotonic() - last
            if still >= recovery.hang_seconds and not told:
                told = True
                path = workdir / HANG_FILE
                with path.open("a") as file:
                    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    print(f"{now}: process {os.getpid()}, {still:.0f} s", file=file, flush=True)
                    faulthandler.dump_traceback(file)
                say(f"No step for {still:.0f} s; {path} tells what each thread was doing.")
                if recovery.exit_on_hang:
                    os._exit(TRY_AGAIN)  # what hangs would not let it end otherwise

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield happened
    finally:
        ended.set()
        thread.join()
