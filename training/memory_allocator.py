"""Settings of the C library's memory allocator: large blocks that PyTorch frees are kept for the next operation."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> None:
    """Keep freed blocks for the next operation instead of returning them to the system.

    On a CPU the activations of a network are tens of megabytes each. glibc maps such a block anew for every operation,
    and the system clears it page by page: 40 % of an evaluation's time. Kept blocks cost some per cent of peak memory.
    Nothing is done for another C library, or where the environment configures the allocator (``MALLOC_…``, or
    ``GLIBC_TUNABLES`` of ``glibc.malloc``).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    configured = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc." in tunables
    if platform.libc_ver()[0] == "glibc" and not configured:
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes, the largest C int
