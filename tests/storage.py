"""Upload of folders to the storages that tests read from."""

import zipfile
from pathlib import Path

from upath import UPath


def upload(folder: Path, uri: str) -> str:
    """Copy all files of a folder to a URI, and return it; ``zip://::`` and a URI names a zip file with the files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if uri.startswith("zip://::"):
        local = folder.parent / "upload.zip"
        with zipfile.ZipFile(local, "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(folder))
        UPath(uri.removeprefix("zip://::")).write_bytes(local.read_bytes())
        return uri
    for path in files:
        target = UPath(uri) / path.relative_to(folder).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return uri
