"""Memory as a process that trains keeps it."""

from __future__ import annotations

import ctypes
import platform


def keep_freed_memory() -> None:
    """Lets glibc hand freed memory out again instead of returning it to the system.

    An operator allocates its results, the copy it is compared with does not. By default glibc maps
    every allocation above 32 MiB anew, and each of its pages then costs a fault at the first write: 79 % of
    the time of quantize_tiles for 8192 x 7168 codes, and nothing that a kernel could change. These figures
    are without, ours and the rivals' alike; a caller who lets large results go pays for the faults besides.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
