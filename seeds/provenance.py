"""Where a result comes from: the code that made it, by which command, when, from which images."""

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

PACKAGES = ("tag2mask", "torch", "torchvision", "segmentation_models_pytorch", "timm", "numpy", "albumentations")
CHANGES = "+changes"  # behind the revision of a checkout whose tracked files are not those of the revision
GIT_SECONDS = 5
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set in hooks, of whichever repository runs them


def provenance(*more: str) -> dict[str, Any]:
    """What made a result: ``packages`` (name: version), ``date`` (UTC), ``command`` and, from a checkout, ``git``.

    Args:
        *more: further packages that the result depends on.
    """
    revision = git_revision(Path(__file__).resolve().parents[1])
    return {
        "packages": package_versions(*more), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    } | ({"git": revision} if revision else {})  # fmt: skip


def package_versions(*more: str) -> dict[str, str]:
    """The versions of Python and of the packages that seeds depend on, and of ``more``."""
    found = {"python": sys.version.split(maxsplit=1)[0]}
    for package in (*PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found


@cache
def git_revision(root: Path) -> str | None:
    """The revision checked out in a folder, 40 digits, with ``+changes`` where tracked files have been changed since.

    Asked once a process. None where the folder is not a checkout's own (an installed package, though it be inside
    somebody's checkout), has no commit, or git is missing, refuses, or takes longer than five seconds.
    """
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40",
               f"--dirty={CHANGES}"]  # fmt: skip
    here = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    try:
        done = subprocess.run(  # noqa: S603  no word of it comes from outside
            command, env=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def ids_sha256(ids: Sequence[str]) -> str:
    """SHA-256 of a list of images: their ids, in order, joined by line breaks."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()
