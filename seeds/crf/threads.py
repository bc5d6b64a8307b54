"""A few threads for compiled functions that run without the interpreter lock.

A pool of Python's own rather than numba's parallel loops: it may be used from several threads at once, survives a fork
(a data loader's worker), and waits without spinning, which matters where cores are shared.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_kept = threading.local()


def spread(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """``[function(item) for item in items]`` on so many threads; the first error is raised."""
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    with _lock:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="crf")
    return list(_pools[threads].map(function, items))


def scratch(name: str, size: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """An array of this thread to write in, contents undefined: the same memory each time, as it grows to be needed."""
    array = getattr(_kept, name, None)
    if array is None or len(array) < size:
        array = np.empty(size, dtype)
        setattr(_kept, name, array)
    return cast("np.ndarray[Any, Any]", array[:size])


def _forget() -> None:
    """In a forked child the threads are gone, and the lock may be held by one of them."""
    global _lock  # noqa: PLW0603
    _pools.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
