"""Differences between two nested settings, by which an earlier result is recognised as one of other settings."""

from collections.abc import Iterator, Mapping
from typing import Any

_MEANINGS = {  # of settings whose values are checksums
    "annotations_sha256": "the annotations", "checkpoint_sha256": "the checkpoint",
    "files_sha256": "the list of tar files", "ids_sha256": "the list of images", "labels_sha256": "the tags",
}  # fmt: skip


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Compare two nested settings.

    Yields:
        The name of a setting that differs, such as ``model.init_args.lr``, and both values; None where it is missing.
    """
    for key in {**wanted, **found}:
        one, other = found.get(key), wanted.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from ((f"{key}.{name}", *values) for name, *values in differences(one, other))
        elif one != other:
            yield key, one, other


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the first difference in words, such as ``size 320, not 384``; empty where there is none.

    ``source`` in the settings is that of `datamodules.source_revision.source_revision`.
    """
    for key, one, other in differences(found, wanted):
        package = key.removeprefix("source.")
        if package != key:
            return f"another revision of the code in {package}/"
        name = f"{key} ({_MEANINGS[key]})" if key in _MEANINGS else key
        return f"{name} {one!r}, not {other!r}"
    return ""
