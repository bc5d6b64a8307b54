"""Write a seed cache shard by shard: in one process or several, on one machine or several, in any number of attempts.

A shard appears by renaming a finished file, and its bytes follow from the settings and the inputs alone. Processes can
therefore be killed at any moment, and two that write the same shard do no harm.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from upath import UPath

from datamodules.errors import InputError
from datamodules.files import AnyPath, differences, write_atomically
from datamodules.progress import Progress
from datamodules.seed_cache_index import INDEX, list_shards
from datamodules.seed_shard import DamagedError, Shard, ShardBuilder, shard_name

STALE = 3600.0  # seconds since the last write, after which a temporary file is that of a killed process

_METRICS = "metrics.json"  # of `seeds evaluate`

_CACHE_FILE = re.compile(r"\.?(?:shard-\d{5,9}|index)\.safetensors(?:\..*part)?|" + re.escape(_METRICS))


@dataclass
class CacheOutput:
    """Finds the missing shards of a seed cache, and writes them.

    Attributes:
        path: the folder.
        classes: names of the classes 1..C.
        settings: everything the result depends on, as plain JSON values.
        blocks: the ids of each shard's images, those that may turn out unusable included.
        inputs: where the inputs are, as plain JSON values by name.
        left_out: images that are known to be unusable: id and reason.

    Raises:
        InputError: the folder is also an input.
    """

    path: AnyPath
    classes: Sequence[str]
    settings: Mapping[str, Any]
    blocks: Sequence[Sequence[str]]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = [UPath(value).resolve() for value in self.inputs.values() if isinstance(value, str)]
        if self.path.resolve() in paths:
            raise InputError(f"{self.path} exists already and is an input of the new seed cache; choose another output")

    def missing(self, numbers: Sequence[int], *, overwrite: bool = False, strict: bool = False) -> list[int]:
        """Create the folder where necessary, and find the shards that are still to be written.

        A shard that exists is kept if every byte of it is sound and it was made with the same settings.

        Args:
            numbers: the shards in question.
            overwrite: remove shards of other settings.
            strict: refuse shards that lack an image other than those of ``left_out``.

        Returns:
            Numbers out of ``numbers``.

        Raises:
            InputError: the folder contains shards of other settings or foreign files, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self.path.iterdir():
                if not _CACHE_FILE.fullmatch(file.name):
                    problem = f"exists already and contains {file.name}, which is not part of a seed cache"
                    raise InputError(f"{self.path} {problem}; choose another output")
                with suppress(FileNotFoundError):
                    if file.name.endswith("part") and file.stat().st_mtime < time.time() - STALE:
                        file.unlink()
        except OSError as error:
            raise InputError(f"the seed cache {self.path} cannot be written: {error.strerror}") from error
        existing = set(list_shards(self.path))
        wanted = {shard_name(number): number for number in numbers}
        beyond = existing.difference(map(shard_name, range(len(self.blocks))))
        todo = []
        for name in [*wanted, *sorted(beyond)]:
            path = self.path / name
            try:
                if name in existing and self._is_written(Shard(path), strict=strict):
                    continue
            except DamagedError:  # written again
                pass
            except InputError:
                if not overwrite:
                    raise
                path.unlink(missing_ok=True)
            if name in wanted:
                todo.append(wanted[name])
        if todo:
            for name in (_METRICS, INDEX):  # of the shards that are replaced
                (self.path / name).unlink(missing_ok=True)
        return todo

    def _is_written(self, shard: Shard, *, strict: bool) -> bool:
        """Return whether a shard is what would be written; raise an InputError if it has other settings."""
        wanted = json.loads(json.dumps({**self.settings, "classes": self.classes, "shards": len(self.blocks)}))
        for key, one, other in differences(shard.result, wanted):
            package = key.removeprefix("source.")
            what = f"{key} {one!r}, not {other!r}" if package == key else f"another revision of the code in {package}/"
            raise InputError(f"{self.path} exists already, made with {what}; overwrite it, or choose another output")
        shard.verify()
        lost = [name for name in shard.left_out if name not in self.left_out]
        if strict and lost:
            raise InputError(f"image {lost[0]} was left out before: {shard.left_out[lost[0]]}")
        return shard.ids == [name for name in self.blocks[shard.number] if name not in shard.left_out]

    def write(self, number: int, shard: ShardBuilder, unreadable: Mapping[str, str]) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            shard: its images.
            unreadable: images that turned out unusable: id and reason.

        Raises:
            InputError: the file cannot be written.
        """
        reasons = {**unreadable, **self.left_out}
        left_out = {name: reasons[name] for name in self.blocks[number] if name in reasons}
        header = {"settings": self.settings, "inputs": self.inputs, "left_out": left_out}
        content = shard.tobytes(shard=number, shards=len(self.blocks), **header)
        write_atomically(self.path / shard_name(number), content)

    def write_missing(self, image: Callable[[str], tuple[Any, ...]], title: str, *, overwrite: bool = False) -> None:
        """Write all missing shards in this process, with a progress line.

        Args:
            image: returns the arguments of :meth:`datamodules.seed_shard.ShardBuilder.add` after the name.
            title: of the progress line.
            overwrite: replace shards of other settings.

        Raises:
            InputError: as :meth:`missing`, :meth:`datamodules.seed_shard.ShardBuilder.add` and ``image``. Finished
                shards stay.
        """
        try:
            missing = self.missing(range(len(self.blocks)), overwrite=overwrite)
            with Progress(title, sum(len(self.blocks[number]) for number in missing)) as progress:
                for number in missing:
                    shard = ShardBuilder(self.classes)
                    for name in self.blocks[number]:
                        if name not in self.left_out:
                            shard.add(name, *image(name))
                        progress.update(advance=1)
                    self.write(number, shard, {})
        finally:
            with suppress(OSError):
                self.path.rmdir()  # where no shard was finished
