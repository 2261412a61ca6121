"""Keeps the C library from giving memory back between the steps of a run on a CPU."""

import ctypes
import platform

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed, for the life of the process; False where there is no glibc.

    XLA's CPU client allocates a program's temporary arrays anew at each call. By default glibc
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
