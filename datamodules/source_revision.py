"""The revision of this project's own code, by which a result made by other code is recognised."""

import hashlib
from pathlib import Path

from datamodules.files import file_sha256

SEED_PACKAGES = ("datamodules", "seeds")
"""The packages whose code makes seeds."""

ALL_PACKAGES = (*SEED_PACKAGES, "training")

_ROOT = Path(__file__).resolve().parents[1]
_SUFFIXES = (".py", ".css", ".js", ".html", ".md")  # the last four: templates


def source_revision(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of each package's source: names and bytes of its Python files and templates.

    Args:
        packages: folders at the top level of the project.

    Returns:
        Hexadecimal digits by package.
    """
    revisions = {}
    for package in packages:
        paths = [path for path in sorted((_ROOT / package).rglob("*")) if path.suffix in _SUFFIXES]
        lines = [f"{path.relative_to(_ROOT).as_posix()} {file_sha256(path)}\n" for path in paths]
        revisions[package] = hashlib.sha256("".join(lines).encode()).hexdigest()
    return revisions
