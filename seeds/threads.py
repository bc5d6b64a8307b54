"""Compiled functions on several threads."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def map_on_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """Return ``[function(item) for item in items]``, computed on so many threads; the first error is raised.

    The functions are compiled and run without the interpreter lock. Python's threads replace numba's parallel loops:
    they may be used from several threads at once, work in a forked process (a data loader's worker), and wait without
    spinning, which matters where cores are shared.
    """
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    return list(_thread_pool(threads, os.getpid()).map(function, items))


@functools.cache
def _thread_pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Return a pool of threads; a forked process makes its own, because it inherits no threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="compiled")
