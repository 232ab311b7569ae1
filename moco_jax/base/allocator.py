"""Keeps memory that was freed for what needs some next, instead of giving it back to Linux.

A step on a CPU and a batch of images take buffers of megabytes and free them soon after. The C
library gets each from the system and gives it back, and the system clears every page anew: half of
the CPU time of a small network's step, and a quarter of that of views.
"""

import ctypes
import os
import sys

# Of the GNU C library's malloc.h: the number of buffers that are a mapping of their own, and how
# much that is free at the end of the heap goes back (-1: nothing does).
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
_OF_THE_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; return whether it does from now on.

    For a program of our own: the memory stays with the process until it ends. Nothing changes where
    the C library is not GNU's, or the user has told it by variables what to do.
    """
    told = any(name in os.environ for name in _OF_THE_USER)
    if told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
