"""The decorator `compiled`: numba's compiler, with a cache on disk that notices changes in other files."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

Function = TypeVar("Function", bound=Callable[..., Any])


class _PackageCache(FunctionCache):
    """Numba's cache of one function on disk, valid while every Python file in the function's folder stays the same.

    Numba's own cache checks only the file that defines the function. It would load machine code that contains an old
    version of a function from another file.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        folder = Path(function.__code__.co_filename).parent
        files = [Path(__file__), *sorted(folder.glob("*.py"))]
        content = b"".join(file.name.encode() + file.read_bytes() for file in files)
        name, stamp = self._impl.filename_base, hashlib.sha256(content).hexdigest()
        self._cache_file = IndexDataCacheFile(self._cache_path, name, stamp)  # type: ignore[no-untyped-call]


def compiled(function: Function) -> Function:
    """Compile a function with numba; the machine code runs without the interpreter lock and is kept on disk.

    Numba stores machine code beside the source file, or in the user's cache folder where the source folder is
    read-only. Where neither can be written, every process compiles the function again. A compiled function may call
    compiled functions of the same folder only: the cache does not notice changes in other folders.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)
    with suppress(RuntimeError):  # numba's "no locator available": no folder can be written
        dispatcher._cache = _PackageCache(function)  # noqa: SLF001  what njit(cache=True) sets, with numba's own class
    return cast("Function", dispatcher)
