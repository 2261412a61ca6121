"""Changes to the whole process, each made by a call and none by importing this package."""

import contextlib
import ctypes
import logging
import platform
import sys
from collections.abc import Iterator


def quiet_orbax() -> None:
    """Keeps Orbax from logging each file that it opens, and tracebacks of errors that it raises."""
    logger = logging.getLogger("absl")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_is_no_orbax_traceback)


def _is_no_orbax_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


@contextlib.contextmanager
def quiet_closed_loops() -> Iterator[None]:
    """Keeps TensorStore from printing a traceback for each array after a failed write.

    It then reports to an event loop of Orbax's that is closed. The failure itself is raised.
    """
    before = sys.unraisablehook

    def report(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def hidden(package: str) -> Iterator[None]:
    """Makes importing a package fail within the block, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None
    try:
        yield
    finally:
        del sys.modules[package]


# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed, for the life of the process; False where there is no glibc.

    XLA's CPU client allocates a program's temporary arrays at each call. By default glibc
    returns blocks of that size to the kernel, which hands them out again page by page, zeroed.
    Measured for a step of MosaicBERT-Base with 8 x 128 tokens, on a virtual machine with 2 cores
    (Python 3.11, jax 0.10.2): 369,000 page faults and 2.3 of 10.6 s of processor time without
    this, none and 0.02 s with it. Memory stays at its peak instead, 4.2 GB there.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_M_MMAP_MAX, 0),  # no mapping of its own for a large block
        (_M_ARENA_MAX, 1),  # one heap: what one thread frees, any other can use
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 2**28),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
