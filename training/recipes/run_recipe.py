"""Running a recipe: each stage in its turn and in its own process, unless nothing that it depends on has changed.

In the recipe's output, ``STAGE`` is the folder that a stage writes, and ``stages`` contains for each stage

==============  ======================================================================================================
``STAGE.yaml``  its options: ``tag2mask COMMAND --config STAGE.yaml`` runs the same stage by hand
``STAGE.json``  its record. While it runs: only the key. Afterwards also all that the key is computed from, names and
                sizes of the files written, seconds, peak memory and figures
``.STAGE.old``  the result of other settings, until the new one is complete; its record is ``.STAGE.old.json``
==============  ======================================================================================================
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import UTC, datetime
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError, UsageError
from datamodules.files import differences, file_sizes, folder_fingerprint, write_atomically
from datamodules.progress import duration
from datamodules.seed_cache import cache_fingerprint
from datamodules.source_revision import ALL_PACKAGES, SEED_PACKAGES, source_revision
from training.command_process import run_process
from training.parsers import config_path
from training.recipes.recipe import RESULT_FILES, STAGES, Recipe, Stage, leaves, read_recipe, substitute

__all__ = ["PATH_OPTIONS", "is_path", "run_recipe"]

PATH_OPTIONS = frozenset({
    "consensus", "cache", "caches", "checkpoint", "ckpt_path", "cues", "cues_checkpoint", "ids", "images", "input_list",
    "photos", "predictions", "results", "root", "source", "weights",
})  # fmt: skip
"""Options of the commands whose values are files or folders."""

ABOUT = """Run a whole recipe: a YAML with the folder of its results ('output') and 'stages', each with a command of
this program ('command'), a YAML for it ('config'), options that override the YAML ('options') and, for an estimate of
the time before the stage has run here, its duration elsewhere ('minutes'). A stage writes to OUTPUT/STAGE; options
refer to that folder as {STAGE}. A stage is kept as long as its options, the stages and files it refers to and the
program's code stay the same. A recipe that was stopped resumes. The recipe's 'settings' are options of this command."""


class RunParser(argparse.ArgumentParser):
    """The parser of ``tag2mask run``; its errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError."""
        raise UsageError(message)


def run_recipe(words: Sequence[str], commands: Sequence[str], dispatch: Callable[[list[str]], None]) -> dict[str, Any]:
    """Run ``tag2mask run``.

    Args:
        words: command line after ``run``.
        commands: all commands that a stage may name.
        dispatch: runs a command line of this program.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: the command line or the recipe is invalid (a `UsageError`), another process runs a recipe in the
            same folder, or a stage failed.
    """
    parser = RunParser("tag2mask run", description=ABOUT, allow_abbrev=False)
    parser.add_argument("-c", "--config", metavar="FILE", required=True, help="the recipe")
    parser.add_argument("--stages", metavar="A,B", default="", help="only these stages and those they need")
    parser.add_argument("--output", metavar="DIR", help="folder of the results in place of the recipe's")
    options, rest = parser.parse_known_args(words)
    given: dict[str, Any] = {"output": options.output} if options.output else {}
    remaining = iter(rest)
    for word in remaining:  # settings: --name value or --name=value, each value in YAML
        name, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(remaining, None)
        if not word.startswith("--") or value is None:
            raise UsageError(f"'{word}' is no option with a value")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--{name}: {value!r} is not YAML") from error
    recipe = read_recipe(Path(config_path(options.config)), commands, given)
    stages = recipe.chosen([name for name in options.stages.split(",") if name])
    with _lock(recipe.output):
        return Runner(recipe, dispatch).run(stages)


@contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Hold the output folder, so that one process at a time runs a recipe in it; leave no empty folder."""
    (output / STAGES).mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / STAGES / "lock", blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process runs a recipe in {output}; wait for it, or stop it") from error
    try:
        yield
    finally:
        with suppress(OSError):  # before the release: nobody can take the lock of a file that is about to be removed
            Path(lock.lock_file).unlink()
        lock.release()
        for folder in (output / STAGES, output):
            with suppress(OSError):  # it is not empty
                folder.rmdir()


class StageResult:
    """Folder and record of a stage, from which its state is known after a kill at any moment.

    Args:
        output: the recipe's folder.
        stage: the stage.
    """

    def __init__(self, output: Path, stage: Stage) -> None:
        records = output / STAGES
        self.stage, self.folder, self.yaml = stage, output / stage.name, records / f"{stage.name}.yaml"
        self._record, self._old = records / f"{stage.name}.json", records / f".{stage.name}.old"
        self._old_record = records / f".{stage.name}.old.json"

    def record(self) -> dict[str, Any] | None:
        """Return the record of a complete result, or None."""
        record = _read_record(self._record)
        return record if "files" in record else None

    def kept(self, key: str) -> dict[str, Any] | None:
        """Return the record of a complete result of this key, or None; an earlier result of this key is put back."""
        for record_path, folder in ((self._record, self.folder), (self._old_record, self._old)):
            record = _read_record(record_path)
            complete = record.get("key") == key and "files" in record
            if complete and record["files"].items() <= file_sizes(folder).items():  # a user may have added files
                if folder == self._old:
                    write_atomically(self._record, record_path.read_bytes())
                    _remove(self.folder)
                    self._old.rename(self.folder)
                _remove(self._old, self._old_record)
                return record
        return None

    def begin(self, key: str) -> list[str] | None:
        """Prepare the folder for a result of this key; a complete result of another key is set aside until `finish`.

        Returns:
            Words of the command line with which the stage resumes, or None where it starts anew in an empty folder.

        Raises:
            InputError: the folder contains files that no recipe has written.
        """
        self.refuse_other_files()
        record = _read_record(self._record)
        if record.get("key") == key and "files" not in record:
            if self.stage.command == "fit":
                if self.stage.options.get("random_seeds"):  # it resumes by itself
                    return []
                if (self.folder / "last.ckpt").is_file():
                    return ["--ckpt_path=last"]
            elif any(self.folder.glob("*.safetensors")):  # shards of the same settings are kept, others replaced
                return ["--overwrite=true"]
        if "files" in record and record["key"] != key and self.folder.exists():
            _remove(self._old, self._old_record)
            write_atomically(self._old_record, self._record.read_bytes())
            self.folder.rename(self._old)
        _remove(self.folder)
        write_atomically(self._record, json.dumps({"key": key}).encode())
        return None

    def refuse_other_files(self) -> None:
        """Raise an InputError if the folder contains files that no recipe has written."""
        empty = not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir()))
        if not empty and not self._record.exists():
            raise InputError(
                f"{self.folder} exists already, and not as a stage of a recipe: move it away, or choose another output"
            )

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record, with the files of the result, and remove the earlier result."""
        content = {**record, "files": file_sizes(self.folder)}
        write_atomically(self._record, (json.dumps(content, indent=1) + "\n").encode())
        _remove(self._old, self._old_record)


class Runner:
    """Runs the stages of a recipe."""

    def __init__(self, recipe: Recipe, dispatch: Callable[[list[str]], None]) -> None:
        self.recipe, self.output, self._dispatch = recipe, recipe.output, dispatch
        self.keys: dict[str, str] = {}  # of the stages so far
        self._fingerprints: dict[str, str | None] = {}  # of files and folders since the last stage ran
        self._expected, self._actual = 0.0, 0.0  # seconds of finished stages: by the recipe's minutes, and measured
        self._console = Console(highlight=False, markup=False, soft_wrap=True)

    def run(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Run or keep stages in their order; write and print the summary."""
        waiting = self._find_waiting(stages)
        if len(waiting) > 1:  # a single one finds mistakes in its options at once
            with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as pool:
                lines = [(stage.name, self._words(stage, Path(folder) / stage.name)) for stage in waiting]
                pool.submit(check_options, lines, self._dispatch).result()  # in a process: it imports torch
        time = self._estimate(waiting) if waiting else "nothing to run"
        self._console.print(f"{self.output}: {len(stages)} stages, {len(waiting)} of them to run, {time}")
        for number, stage in enumerate(stages, 1):
            state = self._estimate([stage]) if stage in waiting else "kept"
            self._console.print(f"  {number} {stage.name}: {stage.command}, {state}")
        reports = []
        for number, stage in enumerate(stages, 1):
            later = [each for each in stages[number:] if each in waiting]
            record, state = self._run_or_keep(stage, f"stage {number} of {len(stages)}: {stage.name}", later)
            shown = {name: value for name, value in record.items() if name not in ("dependencies", "files")}
            reports.append({"name": stage.name, "command": stage.command, "state": state, **shown})
        summary = {"recipe": str(self.recipe.path), "output": str(self.output), "stages": reports}
        write_atomically(self.output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        last = self.recipe.stages[-1]
        if last in stages and (self.output / last.name / RESULT_FILES[0]).is_file():
            for file in (self.output / last.name / name for name in RESULT_FILES):
                if file.is_file():
                    write_atomically(self.output / file.name, file.read_bytes())
        Console().print(summary_table(summary))
        return summary

    def _find_waiting(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return the stages that will run, as far as is known before the others have; refuse folders in their way."""
        waiting: list[Stage] = []
        for stage in stages:
            result = StageResult(self.output, stage)
            if not {each.name for each in waiting} & set(stage.needs):
                key = self.keys[stage.name] = key_of(self._dependencies(stage))
                if result.kept(key) is not None:
                    continue
            result.refuse_other_files()
            waiting.append(stage)
        return waiting

    def _run_or_keep(self, stage: Stage, title: str, later: Sequence[Stage]) -> tuple[dict[str, Any], str]:
        """Run a stage or keep its result; return the record, and ``done`` or ``kept``.

        Args:
            stage: the stage.
            title: its number and name, for messages.
            later: the stages that will run after it.

        Raises:
            InputError: the stage failed, with its exit status; what it wrote stays, to resume from.
        """
        result, dependencies = StageResult(self.output, stage), self._dependencies(stage)
        key = self.keys[stage.name] = key_of(dependencies)
        if (record := result.kept(key)) is not None:
            self._console.print(f"[{title}] {stage.command}: kept", style="bold")
            return record, "kept"
        reason, time = why(result.record(), dependencies), self._estimate([stage])
        rest = f"; with all later stages {self._estimate([stage, *later])}" if later else ""
        self._console.print(f"[{title}] {stage.command}: {reason}; {time}{rest}", style="bold")
        resume_arguments = result.begin(key)
        ended = run_process(self._words(stage, result.yaml) + (resume_arguments or []), title)
        if ended.status:
            killed, status = ended.status > 128, ended.status
            how = f"was killed by signal {status - 128}" if killed else f"failed with exit status {status}"
            error = InputError(f"stage '{stage.name}' (tag2mask {stage.command}) {how}; the same command resumes here")
            error.status = status
            raise error
        self._fingerprints.clear()  # the stage may have downloaded data
        dependencies = self._dependencies(stage) | {"source": dependencies["source"]}  # the code as it started
        self.keys[stage.name] = key_of(dependencies)
        record = {
            "key": self.keys[stage.name],
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(ended.seconds, 1),
            "resumed": resume_arguments is not None,
            "peak_memory": ended.peak_memory,
            "figures": read_figures(result.folder),
            "dependencies": dependencies,
        }
        result.finish(record)
        if stage.minutes and resume_arguments is None:
            self._expected, self._actual = self._expected + 60 * stage.minutes, self._actual + ended.seconds
        return record, "done"

    def _words(self, stage: Stage, path: Path) -> list[str]:
        """Write a stage's options to a YAML and return its command line."""
        options = yaml.safe_dump(stage.resolved_options(self.output), sort_keys=False, allow_unicode=True)
        write_atomically(path, options.encode())
        return [*stage.command.split(), f"--config={path}"]

    def _dependencies(self, stage: Stage) -> dict[str, Any]:
        """Return all that a stage's result depends on, in plain JSON values.

        These are the command, its options, the source of the packages that run it, the keys of the stages it needs,
        and the content of the files and folders that its options name; see `datamodules.files.folder_fingerprint`.
        """
        of_seeds = stage.command.startswith("seeds ") and stage.command != "seeds show"  # which training/ draws
        options = dict(leaves(stage.options))
        folders = {name: str(self.output / name) for name in stage.needs}
        dependencies = {
            "command": stage.command,
            "source": source_revision(SEED_PACKAGES if of_seeds else ALL_PACKAGES),
            "options": options,
            "stages": {name: self.keys[name] for name in stage.needs},
            "files": {
                value: self._fingerprint(substitute(value, folders))
                for name, value in options.items()
                if is_path(name, value)
            },
        }
        plain: dict[str, Any] = json.loads(json.dumps(dependencies, default=str))
        return plain

    def _fingerprint(self, value: str) -> str | None:
        """Return the fingerprint of a file or folder; None where there is none, and for '/' and '..'."""
        if value not in self._fingerprints:
            path, found = Path(value).expanduser(), None
            try:
                if path.resolve() not in Path.cwd().parents:
                    found = cache_fingerprint(path) or folder_fingerprint(path, self.output)
            except PermissionError as error:
                raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from error
            except (OSError, ValueError):  # the value cannot be the name of a file
                found = None
            self._fingerprints[value] = found
        return self._fingerprints[value]

    def _estimate(self, stages: Sequence[Stage]) -> str:
        """Return in words how long stages will take.

        A stage takes as long as its last run here, or else the recipe's minutes, which are of another machine: they are
        multiplied by actual over expected time of the stages that have run since.
        """
        pace = self._actual / self._expected if self._expected else 1.0
        seconds: list[float] = []
        for stage in stages:
            record = StageResult(self.output, stage).record()
            if record is not None and not record["resumed"]:  # else the record has the time of the last attempt only
                seconds.append(record["seconds"])
            elif stage.minutes is not None:
                seconds.append(60 * stage.minutes * pace)
        unknown = len(stages) - len(seconds)
        if not seconds:
            return "time unknown"
        return f"about {duration(sum(seconds))}" + (f", without the {unknown} of unknown time" if unknown else "")


def check_options(stages: Sequence[tuple[str, Sequence[str]]], dispatch: Callable[[list[str]], None]) -> None:
    """Parse the options of stages, given as names and command lines; raise a UsageError for the first mistake."""
    for name, words in stages:
        try:
            with redirect_stdout(StringIO()), suppress(SystemExit):  # after printing
                dispatch([*words, "--print_config"])
        except InputError as error:
            raise UsageError(f"stage '{name}': {error}") from None


def key_of(dependencies: Mapping[str, Any]) -> str:
    """Return the key of a result: a digest of all that the result depends on."""
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()


def is_path(option: str, value: Any) -> bool:
    """Return whether an option's value is a file or folder.

    Args:
        option: name in nested options, such as ``data.root`` or ``caches[0]``.
        value: its value.
    """
    name = option.rpartition(".")[2].partition("[")[0]
    if not isinstance(value, str) or not value:
        return False
    if name == "labels":  # a file of labels, or the kind of labels in the root
        return value.endswith(".npy")
    return name in PATH_OPTIONS and not (name == "weights" and value in ("none", "imagenet"))


def why(record: Mapping[str, Any] | None, dependencies: Mapping[str, Any]) -> str:
    """Return why a stage runs: the first difference from the record of its last run."""
    if record is None:
        return "not made yet"
    old = record["dependencies"]
    if old["command"] != dependencies["command"]:
        return f"was {old['command']}"
    for name, before, now in differences(old["options"], dependencies["options"]):
        return f"{name} is {now!r}, was {before!r}"
    for kind, change in (
        ("files", "{} has changed"), ("stages", "{} was made again"), ("source", "the code in {}/ has changed"),
    ):  # fmt: skip
        for name, _, _ in differences(old[kind], dependencies[kind]):
            return change.format(name)
    return "files are missing, or have changed since"


def read_figures(folder: Path) -> dict[str, float]:
    """Return the main figures that a stage wrote, as fractions.

    These are the mean IoUs of an evaluation (``metrics.json``), or the last ``val/map`` or ``val/miou`` of a training.
    """
    metrics = _read_record(folder / "metrics.json")
    validation = _read_record(folder / "provenance.json").get("figures", {})
    figures: dict[str, Any] = {
        **{name: value for name, value in metrics.items() if name.startswith("miou")},
        "miou without CRF": (metrics.get("without_crf") or {}).get("miou"),
        **{name: validation.get(name) for name in ("val/map", "val/miou")},
    }
    return {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return each stage's state, minutes, memory and figures; those of a kept stage are from its run."""
    table = Table("stage", "state", title=str(summary["output"]))
    table.add_column("minutes", justify="right")
    table.add_column("peak memory", justify="right")
    table.add_column("figures in %")
    for stage in summary["stages"]:
        minutes = f"{stage['seconds'] / 60:.1f}{'+' if stage['resumed'] else ''}"
        figures = ", ".join(f"{name} {100 * value:.1f}" for name, value in stage["figures"].items())
        memory = f"{stage['peak_memory'] / 1e6:.0f} MB"
        table.add_row(Text(stage["name"]), stage["state"], minutes, memory, Text(figures))
    if any(stage["resumed"] for stage in summary["stages"]):
        table.caption = "+ since it was last resumed"
    return table


def _read_record(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty where there is no file, or a damaged one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remove(*paths: Path) -> None:
    """Remove files and folders, if they are there."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
