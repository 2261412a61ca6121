"""What ends a run from outside: signals that ask it to stop, and a watchdog for hangs."""

import contextlib
import faulthandler
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils
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
                    os._exit(TRY_AGAIN)  # a normal exit would wait for what hangs

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield happened
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[int], bool]]:
    """Yields a function of a step's number that tells whether the run must end after that step.

    On several processes SIGTERM to any of them ends all after the same step: JAX's coordination
    service hears it and finds a step that none has passed. In one process SIGTERM and the first
    Ctrl-C do; a second Ctrl-C ends it at once.

    Args:
      say: prints a line.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals are the main thread's
        return
    asked: list[int] = []

    def ask(number, frame):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            say(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint.")
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
