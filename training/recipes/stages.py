"""What is kept of a recipe's stages, and when a stage has to run again.

In the recipe's output, ``<stage>`` is what the stage made and ``stages`` holds of each stage

===================  =================================================================================================
``<stage>.json``     the record, written when the stage has ended well: its key, all that the key is made of, which
                     files there are, seconds, peak memory, figures
``<stage>.yaml``     its options as run: ``tag2mask <command> --config <stage>.yaml`` is the same stage by hand
``.<stage>.begun``   while it is being made: the key of what is in ``<stage>``
``.<stage>.old``     while it is being made again: what the record tells of
===================  =================================================================================================

A process may be killed at any moment: what is found then tells how to go on.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files import file_sizes, folder_fingerprint, write_atomically
from datamodules.seed_cache import cache_fingerprint, list_shards
from datamodules.source_revision import ALL_PACKAGES, SEED_PACKAGES, source_revision
from training.recipes.recipe import STAGES, Stage, leaves, references

__all__ = ["PATH_OPTIONS", "Inputs", "StagePlace", "is_path", "key_of"]

PATH_OPTIONS = frozenset({
    "consensus", "cache", "caches", "checkpoint", "ckpt_path", "cues", "cues_checkpoint", "ids", "images", "input_list",
    "photos", "predictions", "results", "root", "source", "weights",
})  # fmt: skip
"""Options of the commands whose values are files or folders; of ``labels`` a ``.npy`` file alone is one."""


class Inputs:
    """Looks up what stages depend on; what lies outside the output is looked at once."""

    def __init__(self, output: Path) -> None:
        """Prepare.

        Args:
            output: the recipe's folder.
        """
        self.output = output
        self._seen: dict[str, str] = {}

    def dependencies(self, stage: Stage, keys: Mapping[str, str]) -> dict[str, Any]:
        """All that a stage's result depends on.

        These are the command, its options, the source of the packages that run it, the keys of the stages it refers
        to, and the content of the files and folders that its options name; see `datamodules.files.folder_fingerprint`.

        Args:
            stage: the stage.
            keys: of the stages before it.

        Returns:
            Plain JSON values.
        """
        files: dict[str, str | None] = {}
        for name, value in leaves(stage.options):
            if isinstance(value, str) and is_path(name, value):
                inside = set(references(value)) & set(stage.needs)
                content = self._inside(value, stage) if inside else self._outside(value)
                files |= {value: content} if inside or content else {}
        found = {
            "command": stage.command,
            "source": _source(stage.command),
            "options": dict(leaves(stage.options)),
            "stages": {name: keys[name] for name in stage.needs},
            "files": files,
        }
        plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return plain

    def _inside(self, value: str, stage: Stage) -> str | None:
        for name in stage.needs:
            value = value.replace(f"{{{name}}}", str(self.output / name))
        return _fingerprint(Path(value), None)

    def _outside(self, value: str) -> str | None:
        path = Path(value).expanduser() if value.startswith("~/") else Path(value)
        if value not in self._seen:
            with suppress(OSError, ValueError):  # no text that could be a name
                here = path.resolve()
                if here in Path.cwd().parents:  # '/' and '..' are hardly meant as data
                    return None
                content = _fingerprint(path, self.output)
                if content is None or self.output.resolve() in here.parents:  # it may be there later, or change
                    return content
                self._seen[value] = content
        return self._seen.get(value)


def key_of(dependencies: Mapping[str, Any]) -> str:
    """The key of a stage's result: equal if all that it is made of is."""
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()


class StagePlace:
    """Where a stage's result and its record are.

    Attributes:
        name: the stage's.
        folder: what the stage makes.
        yaml: its options as run.
    """

    def __init__(self, output: Path, name: str) -> None:
        """Look at nothing yet.

        Args:
            output: the recipe's folder.
            name: the stage's.
        """
        records = output / STAGES
        self.name, self.folder, self.yaml = name, output / name, records / f"{name}.yaml"
        self._record, self._begun, self._old = (
            records / f"{name}.json", records / f".{name}.begun", records / f".{name}.old",
        )  # fmt: skip

    def record(self) -> dict[str, Any] | None:
        """The record of the last time the stage ended well, or None."""
        try:
            content = json.loads(self._record.read_bytes())
        except (OSError, ValueError):
            return None
        whole = isinstance(content, dict) and {"key", "dependencies", "files", "seconds", "figures"} <= content.keys()
        return content if whole else None

    def kept(self, key: str) -> dict[str, Any] | None:
        """The record if the result it tells of is of this key and still there; one that was set aside is put back."""
        record = self.record()
        if record is None or record["key"] != key:
            return None
        if self._begun.exists():
            if self._begun.read_text() != key and self._old.exists():  # something else was begun since, and left
                remove(self.folder)
                self._old.rename(self.folder)
            else:
                remove(self._old)
            self._begun.unlink()
        return record if self.lost(record) is None else None

    def lost(self, record: Mapping[str, Any]) -> str | None:
        """The first of the record's files that is missing or of another size, or None."""
        there = file_sizes(self.folder)
        return next((name for name, size in record["files"].items() if there.get(name) != size), None)

    def refuse_others(self) -> None:
        """Look that there is nothing in the folder that no recipe has made.

        Raises:
            InputError: there is.
        """
        if self.record() is None and not self._begun.exists() and occupied(self.folder):
            raise InputError(
                f"{self.folder} exists already, and not as a stage of a recipe: move it away, or choose another output"
            )

    def begin(self, key: str) -> bool:
        """Make room for a result of this key.

        An earlier result is set aside until `finish`; an unfinished one of another key is removed.

        Returns:
            Whether an unfinished result of the same key is there to go on with.
        """
        record, begun = self.record(), self._begun.read_text() if self._begun.exists() else None
        if begun == key and (record is None or self._old.exists()):
            return occupied(self.folder)
        write_atomically(self._begun, b"-")  # from here on nobody goes on with what is there
        if record is not None and not self._old.exists():
            if self.folder.exists():
                self.folder.rename(self._old)
        else:
            remove(self.folder)
        if record is not None and record["key"] == key:  # files of it are lost
            self._record.unlink()
        write_atomically(self._begun, key.encode())
        return False

    def resume_arguments(self, stage: Stage) -> list[str] | None:
        """How a command that was stopped goes on with what it left.

        Returns:
            Words to add to its command line; None where it has to start anew.
        """
        if stage.command == "fit" and not stage.options.get("random_seeds"):  # repeated runs resume by themselves
            return ["--ckpt_path=last"] if (self.folder / "last.ckpt").is_file() else None
        if stage.command == "fit":
            return []
        if self.folder.is_dir() and list_shards(self.folder):
            return ["--overwrite=true"]  # shards of the same settings are kept, others are replaced
        return None

    def clear(self) -> None:
        """Remove what is in the folder."""
        remove(self.folder)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record, then remove the result that was set aside.

        Args:
            record: ``key``, ``dependencies`` and whatever is known of the run; the files are looked up here.

        Raises:
            InputError: the disk does not take it.
        """
        write_atomically(self._begun, str(record["key"]).encode())
        content = {**record, "files": file_sizes(self.folder)}
        write_atomically(self._record, (json.dumps(content, indent=1) + "\n").encode())
        remove(self._old)
        self._begun.unlink()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def occupied(path: Path) -> bool:
    """Whether there is something of that name other than an empty folder."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _fingerprint(path: Path, leave_out: Path | None) -> str | None:
    try:
        return cache_fingerprint(path) or folder_fingerprint(path, leave_out)
    except PermissionError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def is_path(option: str, value: str) -> bool:
    """Whether an option's value names a file or folder of its own.

    Args:
        option: its name in nested options, such as ``data.root`` or ``caches[0]``.
        value: its value.
    """
    name = option.rpartition(".")[2].partition("[")[0]
    if name == "labels":  # the file of labels; else the name of a source inside the root
        return value.endswith(".npy")
    return name in PATH_OPTIONS and bool(value) and not (name == "weights" and value in ("none", "imagenet"))


def _source(command: str) -> dict[str, str]:
    """The revision of the packages that run a command; `seeds show` draws by what ``training`` holds."""
    of_seeds = command.startswith("seeds ") and command != "seeds show"
    return source_revision(("datamodules",) if command == "synthesize" else SEED_PACKAGES if of_seeds else ALL_PACKAGES)
