"""An orderly stop: SIGTERM, or Ctrl-C once, ends a run after its step, with a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def heeded(say: Callable[[str], None]) -> Iterator[Callable[[int], bool]]:
    """Yields what tells after each step, by its number, whether the run must end there.

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
