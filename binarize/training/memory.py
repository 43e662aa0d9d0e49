"""Keeps the memory of one step for the next."""

import ctypes
import os

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters, of glibc's malloc.h
MOST = (2**31 - 1, 32 << 20)  # bytes: what an int holds, and what glibc took before 2.35
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, instead of giving it back to the system and asking for it again.

    A step of training frees hundreds of large tensors that the next one allocates anew, and the system clears each page
    before it gives it out. It is for programs of our own: a library has no say in its user's memory.

    Returns:
        Whether it is so now: not where the C library is another than glibc, or the user's environment says otherwise.
    """
    if any(name in os.environ for name in OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(any(mallopt(name, most) == 1 for most in MOST) for name in (MMAP_THRESHOLD, TRIM_THRESHOLD))
