"""Write a seed cache shard by shard: in one process or several, on one machine or several, in any number of attempts.

A shard appears by renaming a finished file, and its bytes follow from the settings and the inputs alone. Processes can
therefore be killed at any moment, and two that write the same shard do no harm.
"""

import json
import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files import differences, write_atomically
from datamodules.progress import Progress
from datamodules.seed_cache import list_shards
from datamodules.seed_shard import DamagedError, Parts, Shard, ShardBuilder, shard_name

STALE = 3600.0  # seconds since the last write, after which a temporary file is that of a killed process

_CACHE_FILE = re.compile(r"\.?shard-\d{5,9}\.safetensors(?:\..*part)?")


class CacheOutput:
    """Finds the missing shards of a seed cache, and writes them.

    Attributes:
        path: the folder.
        classes: names of the classes 1..C.
        blocks: the ids of each shard's images, those that may turn out unusable included.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        settings: Mapping[str, Any],
        blocks: Sequence[Sequence[str]],
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            path: the folder.
            classes: names of the classes 1..C.
            settings: everything the result depends on, as plain JSON values.
            blocks: the ids of each shard's images.
            inputs: where the inputs are, as plain JSON values.

        Raises:
            InputError: the folder is also an input.
        """
        self.path, self.blocks = path, blocks
        self.classes, self._inputs = tuple(classes), dict(inputs or {})
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        if any(isinstance(value, str) and Path(value).resolve() == path.resolve() for value in self._inputs.values()):
            raise InputError(f"{path} exists already and is an input of the new seed cache; choose another output")

    def missing(
        self,
        numbers: Sequence[int] | None = None,
        *,
        overwrite: bool = False,
        strict: bool = False,
        expected: Container[str] = (),
    ) -> list[int]:
        """Create the folder where necessary, and find the shards that are still to be written.

        A shard that exists is kept if every byte of it is sound and it was made with the same settings.

        Args:
            numbers: the shards in question; all by default.
            overwrite: remove shards of other settings.
            strict: refuse shards that lack an image.
            expected: images that shards may lack all the same.

        Returns:
            Numbers out of ``numbers``.

        Raises:
            InputError: the folder contains shards of other settings or foreign files, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self.path.iterdir():
                if not _CACHE_FILE.fullmatch(file.name):
                    raise InputError(
                        f"{self.path} exists already and contains {file.name}, which is not part of a seed cache; "
                        "choose another output"
                    )
                with suppress(FileNotFoundError):
                    if file.name.endswith("part") and file.stat().st_mtime < time.time() - STALE:
                        file.unlink()
        except OSError as error:
            raise InputError(f"the seed cache {self.path} cannot be written: {error.strerror}") from error
        existing = list_shards(self.path)
        beyond = [number for number in existing if number >= len(self.blocks)]
        todo = []
        for number in [*(range(len(self.blocks)) if numbers is None else numbers), *beyond]:
            path = self.path / shard_name(number)
            try:
                if number in existing and self._is_written(Shard(path), strict=strict, expected=expected):
                    continue
            except DamagedError:  # written again
                pass
            except InputError:
                if not overwrite:
                    raise
                path.unlink(missing_ok=True)
            if number < len(self.blocks):
                todo.append(number)
        return todo

    def _is_written(self, shard: Shard, *, strict: bool, expected: Container[str]) -> bool:
        """Return whether a shard is what would be written; raise an InputError if it has other settings."""
        wanted = {**self._settings, "classes": list(self.classes), "shards": len(self.blocks)}
        found = {**shard.settings, "classes": list(shard.classes), "shards": shard.shards}
        for key, one, other in differences(found, wanted):
            package = key.removeprefix("source.")
            if package != key:
                raise InputError(
                    f"{self.path} exists already, made with another revision of the code in {package}/; overwrite it, "
                    "or choose another output"
                )
            raise InputError(
                f"{self.path} exists already, made with {key} {one!r}, not {other!r}; give that value, overwrite it, "
                "or choose another output"
            )
        shard.verify()
        lost = [name for name in shard.left_out if name not in expected]
        if strict and lost:
            raise InputError(f"image {lost[0]} was left out before: {shard.left_out[lost[0]]}")
        return shard.ids == [name for name in self.blocks[shard.number] if name not in shard.left_out]

    def write(self, number: int, shard: ShardBuilder, left_out: Mapping[str, str]) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            shard: its images.
            left_out: the other images of its block: id and reason.

        Raises:
            InputError: the file cannot be written.
        """
        content = shard.tobytes(number, len(self.blocks), self._settings, self._inputs, left_out)
        write_atomically(self.path / shard_name(number), content)

    def write_missing(
        self,
        image: Callable[[str], tuple[NDArray[np.uint8], Parts]],
        title: str,
        *,
        left_out: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write all missing shards in this process, with a progress line.

        Args:
            image: returns cues and parts of an image by its id.
            title: of the progress line.
            left_out: images that cannot be used: id and reason.
            overwrite: replace shards of other settings.

        Raises:
            InputError: as :meth:`missing`, :meth:`datamodules.seed_shard.ShardBuilder.add` and ``image``. Finished
                shards stay.
        """
        left_out = left_out or {}
        try:
            missing = self.missing(overwrite=overwrite, expected=left_out)
            with Progress(title, sum(len(self.blocks[number]) for number in missing)) as progress:
                for number in missing:
                    shard = ShardBuilder(self.classes)
                    for name in self.blocks[number]:
                        if name not in left_out:
                            cues, parts = image(name)
                            shard.add(name, cues, **parts)
                        progress.update(advance=1)
                    reasons = {name: left_out[name] for name in self.blocks[number] if name in left_out}
                    self.write(number, shard, reasons)
        finally:
            with suppress(OSError):
                self.path.rmdir()  # where no shard was finished
