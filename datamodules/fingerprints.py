"""Digests of files, folders and seed caches."""

from pathlib import Path

from datamodules.files import folder_fingerprint
from datamodules.seed_cache import cache_fingerprint

__all__ = ["fingerprint"]


def fingerprint(path: Path, leave_out: Path | None = None) -> str | None:
    """Return the digest of a seed cache's shards, or `folder_fingerprint`."""
    return cache_fingerprint(path) or folder_fingerprint(path, leave_out)
