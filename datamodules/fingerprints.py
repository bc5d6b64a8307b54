"""Digests of files, folders and seed caches."""

import json
from pathlib import Path

from datamodules.cache.format import MANIFEST, digest
from datamodules.cache.making import FREE
from datamodules.files import file_sha256, folder_fingerprint

__all__ = ["fingerprint"]


def fingerprint(path: Path, leave_out: Path | None = None) -> str | None:
    """Return the digest of a seed cache's manifest without dates and paths, or `folder_fingerprint`."""
    if not (path / MANIFEST).is_file():
        return folder_fingerprint(path, leave_out)
    try:
        content = json.loads((path / MANIFEST).read_bytes())
        return digest({key: value for key, value in content.items() if key not in (*FREE, "checksum")})
    except (ValueError, AttributeError, RecursionError):  # another program's file, or a damaged one
        return file_sha256(path / MANIFEST)
