"""A cache in the making: in its own folder, by any number of processes, in as many goes as it takes.

Until the manifest is there, the folder holds ``plan.json`` (all that the result depends on), the shards made so far,
each with a record ``shard-00000.json`` that tells it is finished and what it must be, and ``lock``. Every file is
written whole or not at all, a shard before its record, so that a process may be killed at any moment.

The lock is the operating system's (`filelock`): it ends with the process that holds it, however that ends. On a network
file system it needs that system's lock service.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datamodules.cache.format import FORMAT, INDEX, MANIFEST, VERSION, digest, read_signed, shard_name, signed
from datamodules.cache.shard import ShardBuilder
from datamodules.cache.writer import write_manifest, write_shard
from datamodules.errors import InputError
from datamodules.files import file_sha256, remove_lock, write_atomically
from datamodules.files import differences

PLAN, LOCK, STOP = "plan.json", "lock", "stopped"
PLAN_FORMAT, RECORD_FORMAT = f"{FORMAT}-plan", f"{FORMAT}-record"
# Where files are, when, and of which revision the code: a run may go on with other ones. Packages decide.
FREE = ("checkpoint", "data", "date", "command", "git")
_PART = re.compile(r"\.(?:shard-\d+\.safetensors|shard-\d+\.json|plan\.json|stopped|index\.safetensors|manifest\.json)"
                   r"\.\d+\.part")  # fmt: skip
_SHARD = re.compile(r"shard-(\d{5,})\.(safetensors|json)")


class Making:
    """A cache in the making.

    Attributes:
        path: its folder.
        plan: what the manifest will say of the making.
        blocks: the list's images, shard by shard.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], blocks: Sequence[Sequence[str]]) -> None:
        """Prepare; nothing is touched yet.

        Args:
            path: the folder to be.
            plan: what the manifest will say of the making, ``classes`` included; plain JSON values.
            blocks: the list's images, shard by shard.
        """
        self.path, self.plan, self.blocks = path, dict(plan), blocks
        self._own = digest(comparable(self.plan))
        self._lock = FileLock(path / LOCK, blocking=False, fallback_to_soft=False)

    def begin(self, *, overwrite: bool = False, strict: bool = False) -> list[int] | None:
        """Take the folder, for one process of a run; look at what is there, and check it.

        Args:
            overwrite: throw away a cache, finished or not, that was made otherwise; or finished and made alike.
            strict: refuse to go on where images were left out.

        Returns:
            The numbers of the shards that are still to be made; None where the cache is finished already.

        Raises:
            InputError: somebody else is at work there, the folder is of another plan or no cache, or the disk
                refuses it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            known = (self.path / MANIFEST).is_file() or (self.path / PLAN).is_file()
            if not known and not all(ours(file.name) for file in self.path.iterdir()):
                raise InputError(f"{self.path} exists already; it is not a seed cache; choose another output")
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"{self.path} is being made by another process; wait for it, or stop it") from error
        except OSError as error:
            raise InputError(f"the seed cache {self.path} cannot be written: {error.strerror}") from error
        try:
            return self._look(overwrite=overwrite, strict=strict)
        except BaseException:
            self.release()
            raise

    def _look(self, *, overwrite: bool, strict: bool) -> list[int] | None:
        for file in self.path.iterdir():
            if _PART.fullmatch(file.name) or file.name == STOP:
                file.unlink(missing_ok=True)
        if (self.path / MANIFEST).is_file():
            if not overwrite:
                self._compare(MANIFEST, FORMAT, "exists already, made with")
                self._clean()
                return None
            self._start_anew()
        elif (self.path / PLAN).is_file():
            try:
                self._compare(PLAN, PLAN_FORMAT, "is being made with")
            except InputError:
                if not overwrite:
                    raise
                self._start_anew()
        else:
            self._start_anew()
        records = [self._record(number) for number in range(len(self.blocks))]
        lost = {name: why for record in records if record for name, why in record["left_out"].items()}
        if strict and lost:
            raise InputError(f"image {next(iter(lost))} was left out before: {next(iter(lost.values()))}")
        return [number for number, record in enumerate(records) if not record]

    def _start_anew(self) -> None:
        """Write the plan, then remove what other plans left; a cache is one until its manifest is gone."""
        content = {**self.plan, "format": PLAN_FORMAT, "version": VERSION}
        write_atomically(self.path / PLAN, signed(content))
        (self.path / MANIFEST).unlink(missing_ok=True)
        for file in self.path.iterdir():
            if file.name == INDEX or _SHARD.fullmatch(file.name):
                file.unlink()

    def _compare(self, file: str, kind: str, what: str) -> None:
        """Refuse to go on with what was begun otherwise, naming the first setting that differs."""
        there = read_signed(self.path / file, version=VERSION, kind=kind)
        wanted = comparable(json.loads(json.dumps(self.plan)))
        for key, found, asked in differences(comparable(there), wanted):
            package = key.removeprefix("source.")
            if package != key:
                raise InputError(
                    f"{self.path} {what} another revision of the code in {package}/; ask for it to be overwritten, or "
                    "choose another output"
                )
            raise InputError(
                f"{self.path} {what} {key} {found!r}, not {asked!r}; give that, ask for it to be overwritten, or "
                "choose another output"
            )

    def _record(self, number: int) -> dict[str, Any] | None:
        """What was written of a finished shard, or None where it is not finished or not what was written."""
        try:
            record = read_signed(self.path / record_name(number), version=VERSION, kind=RECORD_FORMAT)
            sound = record["plan"] == self._own and file_sha256(self.path / shard_name(number)) == record["sha256"]
        except (InputError, OSError, KeyError):
            return None
        return record if sound else None

    def write(self, number: int, shard: ShardBuilder, left_out: Mapping[str, str]) -> None:
        """Write a finished shard and then its record; any process of the run may.

        Args:
            number: the shard's.
            shard: its images.
            left_out: those of its block that could not be used: id and reason.

        Raises:
            InputError: the disk does not take it.
        """
        known = write_shard(self.path, number, shard)
        record = {**known, "format": RECORD_FORMAT, "version": VERSION, "plan": self._own, "left_out": dict(left_out)}
        write_atomically(self.path / record_name(number), signed(record))

    def stop(self, reason: str) -> None:
        """Ask all processes of the run to stop, and say why; any of them may."""
        write_atomically(self.path / STOP, reason.encode())

    @property
    def stopped(self) -> str | None:
        """Why a process of the run asked the others to stop, or None."""
        try:
            return (self.path / STOP).read_text(encoding="utf-8")
        except OSError:
            return None

    def _records(self) -> list[dict[str, Any]]:
        """The records of all shards; their files are not read again.

        Raises:
            InputError: a shard is lacking.
        """
        records = []
        for number in range(len(self.blocks)):
            path = self.path / record_name(number)
            if not path.is_file():
                raise InputError(f"{self.path} lacks shard {number}: a process was stopped; run the same command again")
            records.append(read_signed(path, version=VERSION, kind=RECORD_FORMAT))
        return records

    def left_out(self) -> dict[str, str]:
        """The images that the shards have left out, and why, when every shard is there.

        Raises:
            InputError: a shard is lacking.
        """
        return {name: why for record in self._records() for name, why in record["left_out"].items()}

    def finish(self) -> dict[str, str]:
        """Write the manifest when every shard is there, and clear the folder; by the process that began.

        Returns:
            The images that were left out, and why.

        Raises:
            InputError: a shard is lacking, no image could be used, or the disk does not take it.
        """
        shards, ids, left_out = [], [], {}
        for block, record in zip(self.blocks, self._records(), strict=True):
            shards.append({key: record[key] for key in ("sha256", "bytes", "pictures")})
            left_out.update(record["left_out"])
            ids.append([name for name in block if name not in record["left_out"]])
        if not any(ids):
            name, reason = next(iter(left_out.items()), ("", "the list is empty"))
            raise InputError(f"no image could be used; first {name}: {reason}")
        there = read_signed(self.path / PLAN, version=VERSION, kind=PLAN_FORMAT)  # of the day it was begun
        write_manifest(self.path, there, shards, ids, left_out)
        self._clean()
        return left_out

    def _clean(self) -> None:
        for number in range(len(self.blocks)):
            (self.path / record_name(number)).unlink(missing_ok=True)
        (self.path / PLAN).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let go of the folder; one in which nothing was finished is removed. Nothing where it is not held."""
        if not self._lock.is_locked:
            return
        if not any(_SHARD.fullmatch(file.name) or file.name == MANIFEST for file in self.path.iterdir()):
            for name in (PLAN, STOP):
                (self.path / name).unlink(missing_ok=True)
        (self.path / STOP).unlink(missing_ok=True)
        remove_lock(self._lock)
        if not any(self.path.iterdir()):
            self.path.rmdir()


def comparable(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plan or manifest that the result depends on."""
    own = ("format", "version", "pictures", "left_out", "shards", "index")
    return {key: value for key, value in plan.items() if key not in FREE and key not in own}


def ours(name: str) -> bool:
    """Whether a file of that name may be of a cache in the making."""
    known = name in (PLAN, LOCK, STOP, INDEX, MANIFEST)
    return known or _SHARD.fullmatch(name) is not None or _PART.fullmatch(name) is not None


def record_name(number: int) -> str:
    """File name of a finished shard's record."""
    return f"shard-{number:05d}.json"
