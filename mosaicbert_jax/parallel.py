"""Worker processes: a function over many items, with the results in the items' order."""

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mosaicbert_jax.errors import UserError

_ITEMS_AHEAD = 3  # a worker, so that none waits while the slowest item is awaited


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Yields `function(item)` for each item, in their order, whatever the number of workers.

    Items are taken a few ahead of what was yielded, in the caller's thread. With one worker there
    is no other process. Else `function` is pickled once a worker, items and results each time.

    Raises:
      UserError: a worker died, as when the machine ran out of memory; and all that `function` and
        `items` raise.
    """
    if workers == 1:
        yield from map(function, items)
        return
    with contextlib.ExitStack() as stack:
        # Through a file: Python hands arguments to a new process by a pipe, and waits forever once
        # that is full if the process has died by then.
        file = stack.enter_context(tempfile.NamedTemporaryFile())
        pickle.dump(function, file)
        file.flush()
        executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _start_worker, (file.name,)
        )
        # Unlike the executor's own exit: what is queued is not worked off after an error.
        stack.callback(executor.shutdown, wait=True, cancel_futures=True)
        pending: collections.deque[Future] = collections.deque()
        try:
            for item in items:
                with _interrupts_held_back():  # it may start a worker
                    future = executor.submit(_call, item)
                pending.append(future)
                if len(pending) > _ITEMS_AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died. Most likely the machine ran out of memory: use fewer "
                "workers; or a script that is not guarded by `if __name__ == '__main__':` has "
                "called this, and each worker runs it again"
            ) from None


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C comes when this ends, and never to a process that is started here.

    Such a process inherits it. Without, it would end with a traceback where `follow_parent` has not
    been called yet, as while it imports what it needs.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Has a worker process end with the process that started it, and not before."""
    # Ctrl-C reaches every process of the terminal; the parent is the one to end the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed can't tell its workers, which would wait for it forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


_function: Callable[[Any], Any]


def _start_worker(path: str) -> None:
    global _function
    follow_parent()
    with open(path, "rb") as file:
        _function = pickle.load(file)
    # The worker is one of many; threads of the tokenizer's own would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _call(item: Any) -> Any:
    return _function(item)
