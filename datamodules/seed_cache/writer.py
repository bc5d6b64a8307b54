"""Write a seed cache shard by shard: in one process or several, on one machine or several, in any number of attempts.

A shard appears by renaming a finished file, in an object store by one PUT, and its bytes follow from the settings and
the inputs alone. Processes can therefore be killed at any moment, and two that write the same shard do no harm.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upath import UPath

from datamodules.errors import InputError, os_errors
from datamodules.files import AnyPath, list_folder, write_atomically
from datamodules.progress import Progress
from datamodules.seed_cache.index import INDEX, is_shard
from datamodules.seed_cache.shard import DamagedError, Shard, ShardBuilder, shard_name
from datamodules.setting_differences import first_difference

STALE = 3600.0  # seconds since the last write, after which a temporary file is that of a killed process

_METRICS = "metrics.json"  # of `seeds evaluate`

_TEMPORARY = re.compile(rf"\.(.+\.safetensors|{re.escape(_METRICS)})\..*part")  # see `open_atomically`


@dataclass
class SeedCacheWriter:
    """Finds the missing shards of a seed cache, and writes them.

    Attributes:
        path: the folder, or its URI.
        classes: names of the classes 1..C.
        settings: everything the result depends on, as plain JSON values.
        ids_by_shard: the ids of each shard's images, those that may turn out unusable included; None where they follow
            from the settings, and are not known before the images are read.
        inputs: where the inputs are, as plain JSON values by name.
        left_out: images that are known to be unusable: id and reason.
        names: the file name of each shard; by default `datamodules.seed_cache.shard.shard_name`.

    Raises:
        InputError: the folder is also an input.
    """

    path: AnyPath
    classes: Sequence[str]
    settings: Mapping[str, Any]
    ids_by_shard: Sequence[Sequence[str] | None]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        paths = [UPath(value).resolve() for value in self.inputs.values() if isinstance(value, str)]
        if self.path.resolve() in paths:
            raise InputError(f"{self.path} exists already and is an input of the new seed cache; choose another output")
        self.names = self.names or [shard_name(number) for number in range(len(self.ids_by_shard))]

    def missing(self, numbers: Sequence[int], *, overwrite: bool = False, strict: bool = False) -> list[int]:
        """Create the folder where necessary, and find the shards that are still to be written.

        A shard that exists is kept if every byte of it is sound and it was made with the same settings.

        Args:
            numbers: the shards in question.
            overwrite: remove shards of other settings, and those that ``strict`` refuses.
            strict: refuse shards that lack an image other than those of ``left_out``.

        Returns:
            Numbers out of ``numbers``.

        Raises:
            InputError: the folder contains shards of other settings or foreign files, or cannot be written.
        """
        existing = self._existing()
        wanted = {self.names[number]: number for number in numbers}
        beyond = existing.difference(self.names)
        others = [] if overwrite else sorted(existing & set(self.names) - wanted.keys())
        todo = []
        for name in [*wanted, *sorted(beyond), *others[:1]]:  # one of another partition, so that settings are compared
            path = self.path / name
            try:
                if name in existing and self._is_written(Shard(path), wanted.get(name), strict=strict):
                    continue
            except DamagedError as error:  # written again
                if name in beyond:
                    raise InputError(f"{error}, or is not part of a seed cache: remove it") from error
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

    def _existing(self) -> set[str]:
        """Return the names of the shards that exist; create the folder, and remove what killed processes have left.

        An object store has no folders, and a killed process leaves nothing there.
        """
        folders, files = list[str](), list[str]()
        with os_errors(f"the seed cache {self.path} cannot be written"):
            if isinstance(self.path, Path):
                self.path.mkdir(parents=True, exist_ok=True)
            try:
                folders, files = list_folder(self.path)
            except FileNotFoundError as error:
                if "bucket" in str(error.strerror):  # found before the first shard is computed
                    raise
            for name in folders + files:
                if not is_shard(name) and name[0] != "." and name not in (INDEX, _METRICS):
                    problem = f"exists already and contains {name}, which is not part of a seed cache"
                    raise InputError(f"{self.path} {problem}; choose another output")
                with suppress(FileNotFoundError):
                    if _TEMPORARY.fullmatch(name) and (self.path / name).stat().st_mtime < time.time() - STALE:
                        (self.path / name).unlink()
        return set(filter(is_shard, files))

    def _is_written(self, shard: Shard, number: int | None, *, strict: bool) -> bool:
        """Return whether a shard is what would be written; raise an InputError if it has other settings.

        A shard that is not to be written has no ``number``: its settings alone are compared.
        """
        wanted = json.loads(json.dumps({**self.settings, "classes": self.classes, "shards": len(self.ids_by_shard)}))
        if what := first_difference(shard.result, wanted):
            raise InputError(f"{self.path} exists already, made with {what}; overwrite it, or choose another output")
        if number is None:
            return True
        shard.verify()
        lost = [name for name in shard.left_out if name not in self.left_out]
        if strict and lost:
            raise InputError(f"image {lost[0]} was left out before: {shard.left_out[lost[0]]}")
        ids = self.ids_by_shard[number]
        fits = ids is None or shard.ids == [name for name in ids if name not in shard.left_out]
        return fits and shard.number == number

    def write(self, number: int, shard: ShardBuilder, left_out: dict[str, str]) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            shard: its images.
            left_out: its images that could not be used: id and reason.

        Raises:
            InputError: the file cannot be written.
        """
        header = {"settings": self.settings, "inputs": self.inputs, "left_out": left_out}
        content = shard.tobytes(shard=number, shards=len(self.ids_by_shard), **header)
        write_atomically(self.path / self.names[number], content)

    def write_missing(self, image: Callable[[str], tuple[Any, ...]], title: str, *, overwrite: bool = False) -> None:
        """Write all missing shards in this process, with a progress line.

        Args:
            image: returns the arguments of `datamodules.seed_cache.shard.ShardBuilder.add` after the name.
            title: of the progress line.
            overwrite: replace shards of other settings.

        Raises:
            InputError: as `missing`, `datamodules.seed_cache.shard.ShardBuilder.add` and ``image``. Finished
                shards stay.
        """
        try:
            missing = self.missing(range(len(self.ids_by_shard)), overwrite=overwrite)
            with Progress(title, sum(len(self.ids_by_shard[number] or ()) for number in missing)) as progress:
                for number in missing:
                    shard = ShardBuilder(self.classes)
                    ids = self.ids_by_shard[number] or ()
                    left_out = {name: self.left_out[name] for name in ids if name in self.left_out}
                    for name in ids:
                        if name not in left_out:
                            shard.add(name, *image(name))
                        progress.update(advance=1)
                    self.write(number, shard, left_out)
        finally:
            self.remove_empty_folder()

    def remove_empty_folder(self) -> None:
        """Remove the folder where no shard was finished."""
        if isinstance(self.path, Path):  # a UPath would remove a folder that is not empty
            with suppress(OSError):
                self.path.rmdir()
