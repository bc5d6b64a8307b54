"""Run the stages of a recipe, each in its own process, or keep what an earlier run has made."""

import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.table import Column, Table
from upath import UPath

from datamodules.annotations.sources import referenced_files
from datamodules.errors import InputError, UsageError, errors_at
from datamodules.files import (
    AnyPath,
    file_sizes,
    folder_fingerprint,
    is_uri,
    join_path,
    read_json_or_empty,
    storage_errors,
    write_json,
)
from datamodules.progress import print_result
from datamodules.seed_cache.cache import cache_fingerprint
from datamodules.setting_differences import differences
from datamodules.source_revision import ALL_PACKAGES, SEED_PACKAGES, source_revision
from training.child_process import run_process
from training.recipes.recipe import ROOT_OPTIONS, STAGES, Stage, is_annotation_file, is_path, leaves, substitute
from training.recipes.stage_result import StageResult, read_figures, remove


class Runner:
    """Runs the stages of a recipe."""

    def __init__(self, output: Path, dispatch: Callable[[list[str]], None]) -> None:
        self.output, self._dispatch = output, dispatch
        self.keys: dict[str, str] = {}  # of the stages so far
        self.folders: dict[str, Path] = {}  # of their results

    def run(self, stages: Sequence[Stage]) -> None:
        """Run or keep stages in their order; write and print the summary."""
        waiting = self._waiting(stages)
        parsed = self._parse(waiting)
        if waiting:
            from training.recipes.input_checks import InputChecks  # torch, here only

            InputChecks().check_existing(parsed, _with_parsed(stages, parsed))
        print_result(f"{self.output}: stages to run: {', '.join(each.name for each in waiting) or 'none'}")
        reports = []
        for number, stage in enumerate(stages, 1):
            record, state = self._run_or_keep(stage, f"stage {number} of {len(stages)}: {stage.name}")
            shown = {name: value for name, value in record.items() if name not in ("dependencies", "files", "old")}
            reports.append({"name": stage.name, "command": stage.command, "state": state, **shown})
        write_json(self.output / "summary.json", {"output": str(self.output), "stages": reports})
        table = Table("stage", "state", "minutes", "figures in %", title=str(self.output))
        for report in reports:
            minutes = f"{report['seconds'] / 60:.1f}{' since resumed' if report['resumed'] else ''}"
            before = report.get("figures_before", {})
            figures = ", ".join(
                f"{name} {100 * value:.1f}" + (f" (before: {100 * before[name]:.1f})" if name in before else "")
                for name, value in report["figures"].items()
            )
            table.add_row(report["name"], report["state"], minutes, figures)
        print_result(table)

    def _parse(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return stages with numbers in place of texts that their commands read as numbers; check all options.

        Raises:
            UsageError: an option is invalid; the message names the stage.
        """
        parsed = []
        with TemporaryDirectory() as folder:
            (Path(folder) / STAGES).mkdir()
            for stage in stages:
                printed = StringIO()
                try:
                    with redirect_stdout(printed), suppress(SystemExit):  # after printing
                        words = replace(stage, needs=()).write_options(Path(folder))
                        self._dispatch([*words, "--print_config"])
                except InputError as error:
                    raise UsageError(f"stage '{stage.name}': {error}") from None
                try:
                    read = yaml.safe_load(printed.getvalue())
                except yaml.YAMLError:  # a module of others has printed something else, too
                    read = None
                parsed.append(replace(stage, options=_with_numbers(stage.options, read)))
        return parsed

    def _waiting(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return the stages that will run, as far as is known before the others have."""
        _fingerprint.cache_clear()
        waiting: list[Stage] = []
        for stage in stages:
            result = StageResult(self.output, stage)
            changed = any(each.name in stage.needs for each in waiting)
            found = None if changed else result.find(self._key(stage)[0])
            self.folders[stage.name] = found[1] if found else result.folder
            if not found:
                if result.folder.exists() and not result.record_path.exists():
                    raise InputError(f"{result.folder} exists already, and no recipe has written it: move it away")
                waiting.append(stage)
        return waiting

    def estimate(self, stages: Sequence[Stage]) -> None:
        """Print the stages and what the trainings among them will take, and run none.

        Raises:
            InputError: a stage would refuse its data or weights, or an option is invalid; the message names the stage.
        """
        from training.recipes.estimate import estimate_training  # torch, here only
        from training.recipes.input_checks import InputChecks, check_options, downloads_weights, unavailable_data

        waiting, hours, checks = self._parse(self._waiting(stages)), 0.0, InputChecks()
        stages = _with_parsed(stages, waiting)
        for stage in waiting:
            with errors_at(f"stage '{stage.name}'"):
                check_options(stage, stages)
        unavailable = unavailable_data(waiting, stages)
        table = Table(Column("stage", no_wrap=True), "command", "state", title=str(self.output))
        for column in ("images", "steps", "hours", "PFLOP", "GB"):
            table.add_column(column, justify="right")
        for stage in stages:
            if stage not in waiting:
                table.add_row(stage.name, stage.command, "kept")
                continue
            with errors_at(f"stage '{stage.name}'"):
                is_estimated = stage.command == "fit" and stage.name not in unavailable
                found = estimate_training(stage.options, checks) if is_estimated else None
            figures: list[str] = []
            if found is not None:
                hours += found.hours
                figures = [f"{found.images:,}", f"{found.steps:,}", f"{found.hours:.2f}"]
                figures += [f"{found.operations / 1e15:,.1f}", f"{found.memory / 1e9:.1f}"]
            table.add_row(stage.name, stage.command, "to run", *figures)
        print_result(table)
        print_result(
            f"trainings: {hours:.1f} hours, estimated by two steps of each network on this machine, without reading "
            "of images, validations and the other stages; PFLOP: 1e15 floating-point operations, a GPU at "
            "10 TFLOP/s computes 36 PFLOP per hour; GB: weights, gradients, optimizer and activations"
        )
        for name, reason in unavailable.items():
            print_result(f"stage '{name}' is neither checked nor estimated: {reason}")
        if names := [each.name for each in waiting if downloads_weights(each)]:
            print_result(f"weights that are downloaded, if they are not there yet, are not checked: {', '.join(names)}")

    def _run_or_keep(self, stage: Stage, title: str) -> tuple[dict[str, Any], str]:
        """Run a stage or keep its result; return the record, and ``done`` or ``kept``.

        Args:
            stage: the stage.
            title: its number and name, for messages.

        Raises:
            InputError: the stage failed, with its exit status; what it wrote stays, to resume from.
        """
        result = StageResult(self.output, stage)
        key, dependencies = self._key(stage)
        record, self.folders[stage.name] = result.keep(key), result.folder
        if record is not None:
            stage.write_options(self.output)  # those of a failed run may be there
            print_result(f"[{title}] {stage.command}: kept", style="bold")
            return record, "kept"
        earlier = read_json_or_empty(result.record_path)
        earlier = earlier.get("old") or earlier
        reason = _reason_to_run(earlier.get("dependencies"), dependencies)
        print_result(f"[{title}] {stage.command}: {reason}", style="bold")
        resume_arguments, start = result.begin(key), time.monotonic()
        if status := run_process([*stage.write_options(self.output), *(resume_arguments or [])], title):
            failed = f"stage '{stage.name}' (tag2mask {stage.command}) failed with exit status {status}"
            error = InputError(f"{failed}; the same command resumes here")
            error.status = status  # 128 and its number, after a signal
            raise error
        _fingerprint.cache_clear()  # the stage may have downloaded data
        key, dependencies = self._key(stage, dependencies)
        record = {
            "key": key, "files": file_sizes(result.folder),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1), "resumed": resume_arguments is not None,
            "figures": read_figures(result.folder), "dependencies": dependencies,
        }  # fmt: skip
        if earlier.get("figures"):
            record["figures_before"] = earlier["figures"]
        write_json(result.record_path, record)
        remove(result.old)
        return record, "done"

    def _key(self, stage: Stage, started: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Return a digest of all that a stage's result depends on, and the dependencies in plain JSON values.

        These are the command, its options, the source of the packages that run it, the keys of the stages it needs,
        and the content of the files and folders that its options name; see `datamodules.files.folder_fingerprint`.

        Args:
            stage: the stage.
            started: dependencies when the stage started, once it has ended: changes of code and files since then count
                for the next run. Only files that did not exist, such as downloads, are those of now.
        """
        of_seeds = stage.command.startswith("seeds ") and stage.command != "seeds show"  # which training/ draws
        options = {name: _plain_path(value) if is_path(name, value) else value for name, value in leaves(stage.options)}
        paths = [value for name, value in options.items() if is_path(name, value)]
        folders = {name: str(self.folders[name]) for name in stage.needs}
        for name, value in options.items():
            group, _, last = name.rpartition(".")
            root = options.get(f"{group}.root" if group else "root")
            if last in ROOT_OPTIONS and is_path(name, value) and isinstance(root, str):
                paths.append(str(join_path(UPath(root), value)))  # perhaps beside the root, whose fingerprint lacks it
            if is_annotation_file(name, value):
                paths += referenced_files(UPath(substitute(value, folders)))
            if last == "class_path" and isinstance(value, str):
                paths += _module_of_another_package(value)
        before: Mapping[str, str | None] = started["files"] if started else {}
        dependencies = {
            "command": stage.command, "options": options,
            "files": {path: before.get(path) or _fingerprint(substitute(path, folders), self.output) for path in paths},
            "stages": {name: self.keys[name] for name in stage.needs},
            "source": (started or {}).get("source") or source_revision(SEED_PACKAGES if of_seeds else ALL_PACKAGES),
        }  # fmt: skip
        text = json.dumps(dependencies, sort_keys=True, default=str)
        self.keys[stage.name] = hashlib.sha256(text.encode()).hexdigest()
        return self.keys[stage.name], json.loads(text)


def _module_of_another_package(class_path: str) -> list[str]:
    """Return the file of a class's module, if the module is found and not of this project."""
    module = class_path.rpartition(".")[0]
    if module.partition(".")[0] in ("", *ALL_PACKAGES):
        return []
    with suppress(ImportError, ValueError):  # ValueError: not the name of a module
        spec = find_spec(module)
        if spec is not None and spec.has_location:
            return [str(spec.origin)]
    return []


def _reason_to_run(last: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Return why a stage runs: the first of its dependencies that differs from those of the last result."""
    if not last:
        return "not made yet"
    changes = sorted(differences(last, now), key=lambda each: each[0].startswith("files."))
    if not changes:
        return "a file of the result has changed"
    name, before, _ = changes[0]
    return f"{name} {'is new' if before is None and name.startswith('files.') else 'has changed'}"


def _with_parsed(stages: Sequence[Stage], parsed: Sequence[Stage]) -> list[Stage]:
    """Return all stages, those of ``parsed`` in place of the same before they were parsed."""
    by_name = {each.name: each for each in parsed}
    return [by_name.get(each.name, each) for each in stages]


def _with_numbers(given: Any, parsed: Any) -> Any:
    """Return nested options in which texts that were parsed as numbers, true or false are replaced by these."""
    if isinstance(given, Mapping) and isinstance(parsed, Mapping):
        return {name: _with_numbers(value, parsed.get(name)) for name, value in given.items()}
    return parsed if isinstance(given, str) and isinstance(parsed, int | float) else given


def _plain_path(path: str) -> str:
    """Return a path without a slash at its end and without ``.`` in it; a URI as it is."""
    return path if is_uri(path) else str(Path(path))


@functools.cache
def _fingerprint(value: str, output: Path) -> str | None:
    """Return the fingerprint of a file or folder.

    Returns:
        Hexadecimal digits; None where there is no such file, and for '/' and '..'.
    """
    with storage_errors(value):
        path: AnyPath = UPath(value).expanduser()
    if path.name.endswith(".tar") and re.search(r"[*?[{]", path.name):  # a pattern of tar files
        path = path.parent
    if isinstance(path, Path) and path.resolve() in Path.cwd().parents:
        return None
    return cache_fingerprint(path) or folder_fingerprint(path, output)
