"""Settings, which are nested plain values, told apart."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differences"]


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Where two settings differ.

    Yields:
        The name of a setting, such as ``model.init_args.lr``, and both values; None where it is not there.
    """
    for key in {**wanted, **found}:
        there, asked = found.get(key), wanted.get(key)
        if isinstance(there, Mapping) and isinstance(asked, Mapping):
            yield from ((f"{key}.{name}", *values) for name, *values in differences(there, asked))
        elif there != asked:
            yield key, there, asked
