"""What made a result: the revision of the code, packages, command, date and list of images."""

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from upath import UPath

from datamodules.errors import os_errors
from datamodules.files import read_bytes
from datamodules.sample import Sample

DISTRIBUTIONS = ("tag2mask", "torch", "torchvision", "segmentation_models_pytorch", "timm", "numpy", "albumentations")
GIT_SECONDS = 5
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set in the hooks of another repository


def provenance(*more: str) -> dict[str, Any]:
    """Return what made a result: ``packages`` (name: version), ``date`` (UTC), ``command`` and, in a checkout, ``git``.

    Args:
        *more: further packages that the result depends on.
    """
    revision = git_revision(Path(__file__).resolve().parents[1])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    made = {"packages": package_versions(*more), "date": date, "command": shlex.join(sys.argv)}
    return made | ({"git": revision} if revision else {})


def package_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that seeds depend on, and of ``more``."""
    found = {"python": sys.version.split(maxsplit=1)[0]}
    for package in (*DISTRIBUTIONS, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found


@cache
def git_revision(root: Path) -> str | None:
    """Return the revision checked out in a folder, 40 digits, with ``+changes`` if tracked files have changed since.

    git runs once per process. None for an installed package (also inside another checkout), for a checkout without
    commits, and where git is missing, fails, or takes longer than five seconds.
    """
    if not (root / ".git").exists():
        return None
    options = ["--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", *options]
    here = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    try:
        done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def ids_sha256(ids: Sequence[str]) -> str:
    """Return the SHA-256 of a list of images: their ids, in order, joined by line breaks."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def annotations_sha256(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 of what people have drawn into images, with the content of mask files.

    Raises:
        InputError: a mask cannot be read.
    """
    digest = hashlib.sha256()
    for sample in samples:
        drawn = (sample.id, sample.points, sample.scribbles, sample.boxes)
        digest.update(repr(drawn).encode())
        if isinstance(sample.mask, str):
            with os_errors(f"mask {sample.mask} cannot be read"):
                digest.update(read_bytes(UPath(sample.mask)))
        else:
            digest.update(repr(sample.mask).encode())
    return digest.hexdigest()
