"""Compiles the training step of a plan, and searches for its largest microbatch, as JSON.

Runs where compilers are, with one argument: the JSON of a `step_search.Order`. Prints what
`step_search.compiled` returns.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from mosaicbert_jax.errors import UserError


@contextlib.contextmanager
def _shown(terminal: TextIO, doing: str) -> Iterator[None]:
    """Says what is being done; on a terminal with a running count of seconds."""
    done, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(1.0):
            print(f"\r{doing}: {time.monotonic() - began:.0f} s", end="", file=terminal, flush=True)

    if not terminal.isatty():
        print(f"{doing} (about half a minute for Base on two cores).", file=terminal, flush=True)
        yield
        return
    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
    finally:
        done.set()
        ticking.join()
        print("\r\033[K", end="", file=terminal, flush=True)


@contextlib.contextmanager
def _without_the_libraries_words() -> Iterator[TextIO]:
    """Silences the libraries; yields the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with os.fdopen(os.dup(kept), "w") as terminal:
            yield terminal
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def main() -> None:
    """Prints {"error": …} for what the user can fix."""
    record = json.loads(sys.argv[1])
    try:
        with _without_the_libraries_words() as terminal:
            # Imported here: some libraries write as they are imported.
            from mosaicbert_jax.planning.step_search import Order, compiled

            order = Order(**{**record, "mesh": tuple(record["mesh"])})
            answer = compiled(order, functools.partial(_shown, terminal))
    except UserError as error:
        answer = {"error": str(error)}
    except KeyboardInterrupt:
        sys.exit(130)  # without a traceback: who started this says it
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
