"""The C library's allocator, told to keep the large blocks that PyTorch frees."""

import ctypes
import os

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>
LARGEST = 2**31 - 1  # bytes, the most that a C int says


def keep_freed_memory() -> None:
    """Let blocks that were freed serve the next operation, in place of going back to the system.

    On a CPU a network's maps are tens of megabytes each. glibc maps such a block for every operation anew, and the
    system clears it page by page: 40 % of an evaluation's time. Kept blocks cost some per cent of peak memory. Nothing
    is done where the C library is another one, or the environment sets its allocator already (``MALLOC_…``, or
    ``GLIBC_TUNABLES`` of ``glibc.malloc``).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc." in os.environ.get(
        "GLIBC_TUNABLES", ""
    ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, LARGEST)
