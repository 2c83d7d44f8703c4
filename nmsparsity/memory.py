"""Freed memory stays with the process, so that large activations need not be mapped anew."""

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h
_SIZES = (2**30, 2**25)  # older C libraries refuse more than 32 MiB


def keep_memory() -> bool:
    """Have the C library keep what is freed, for the whole process; whether it could be told.

    torch asks the C library for the memory of every result. Large blocks come from the system each
    time and go back to it, and the system clears every page: with batches of images this can take
    as long as the computing. Other engines keep an arena of their own; this makes one of malloc.
    The process then stays as large as it ever was. Only the GNU C library (Linux) can be told.

    Call it once, where a process starts that serves models::

        nm.keep_memory()
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    kept = any(mallopt(_MMAP_THRESHOLD, size) for size in _SIZES)
    return bool(kept and mallopt(_TRIM_THRESHOLD, 2**30))
