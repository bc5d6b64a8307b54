"""Threads for compiled functions that run without the interpreter lock.

A pool of Python's threads in place of numba's parallel loops: it may be used from several threads at once, works in a
forked process (a data loader's worker), and waits without spinning, which matters where cores are shared.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def map_on_threads(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Return ``[function(item) for item in items]``, computed on so many threads; the first error is raised."""
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    with _lock:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="crf")
    return list(_pools[threads].map(function, items))


def _forget_threads() -> None:
    """Start anew in a forked process: the threads are gone, and one of them may have held the lock."""
    global _lock  # noqa: PLW0603
    _pools.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
