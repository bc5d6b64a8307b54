"""A whole recipe by one command: each stage runs in its turn, unless nothing that it depends on has changed."""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from datamodules.errors import InputError, UsageError
from datamodules.files import remove_lock, write_atomically
from training.recipes.estimates import Estimates
from training.recipes.recipe import STAGES, Recipe, Stage, read_recipe
from training.recipes.run_summary import figures_of, summary_table, why
from training.recipes.stage_process import Ended, check_options, run_process
from training.recipes.stages import Inputs, StagePlace, key_of
from training.yaml_files import config_path

__all__ = ["run_recipe"]

RESULT = ("metrics.json", "metrics.csv", "index.html")  # of the last stage: the recipe's, too
ABOUT = """Run a whole recipe: a YAML with the folder of its results ('output'), and 'stages', each with one of this
program's commands ('command'), a YAML of it ('config'), options over that ('options') and, to tell how long the recipe
will take before a stage has run here, how long it took elsewhere ('minutes'). What a stage makes is in
OUTPUT/STAGE; options refer to it as {STAGE}. A stage is kept as long as its options, the stages and files it refers to
and the program's own code stay the same. A recipe that was stopped goes on where it was. What the recipe lists under
'settings' are options here, too."""


class StageError(InputError):
    """A stage failed; the process's exit status is passed on."""

    def __init__(self, stage: Stage, ended: Ended) -> None:
        killed = ended.status > 128
        how = f"was killed by signal {ended.status - 128}" if killed else f"failed with exit status {ended.status}"
        super().__init__(f"stage '{stage.name}' (tag2mask {stage.command}) {how}; the same command resumes here")
        self.status = ended.status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def run_recipe(words: Sequence[str], commands: list[str]) -> dict[str, Any]:
    """Run `tag2mask run`.

    Args:
        words: the command line after ``run``.
        commands: those that a stage may be.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: the command line or the recipe is wrong (a `UsageError`), somebody else runs a recipe in the same
            folder, or a stage failed.
    """
    parser = _Parser("tag2mask run", description=ABOUT, allow_abbrev=False)
    parser.add_argument("-c", "--config", metavar="FILE", required=True, help="the recipe")
    parser.add_argument("--stages", metavar="A,B", default="", help="only these, and those they need; all if not given")
    parser.add_argument("--output", metavar="DIR", help="folder of the results in place of the recipe's")
    options, rest = parser.parse_known_args(words)
    given = _pairs(rest) | ({"output": options.output} if options.output else {})
    recipe = read_recipe(Path(config_path(options.config)), commands, given)
    stages = recipe.chosen([name for name in options.stages.split(",") if name])
    with _alone(recipe.output):
        return Runner(recipe).run(stages)


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """Settings on the command line: ``--name value`` or ``--name=value``, each value as YAML would read it."""
    found: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(rest, None)
        if not word.startswith("--") or value is None:
            raise UsageError(f"'{word}' is no option with a value")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--{name}: {value!r} is not YAML") from error
    return found


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold a recipe's folder, one process at a time."""
    (output / STAGES).mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / STAGES / "lock", blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process runs a recipe in {output}; wait for it, or stop it") from error
    try:
        yield
    finally:
        remove_lock(lock)
        for folder in (output / STAGES, output):
            with suppress(OSError):  # it is not empty
                folder.rmdir()


class Runner:
    """A recipe at work."""

    def __init__(self, recipe: Recipe) -> None:
        """Prepare; nothing is touched yet."""
        self.recipe, self.output = recipe, recipe.output
        self.inputs = Inputs(recipe.output)
        self.keys: dict[str, str] = {}
        self.estimates = Estimates((), recipe.output)
        self.console = Console(highlight=False, markup=False, soft_wrap=True)

    def run(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Run stages in their order, or keep them; then write and print what there is to say of them."""
        waiting = self._check(stages)
        self.estimates = Estimates(stages, self.output)
        self._announce(stages, waiting)
        reports = []
        for number, stage in enumerate(stages, 1):
            later = [each for each in stages[number:] if each in waiting]
            reports.append(self._stage(stage, f"stage {number} of {len(stages)}: {stage.name}", later))
        summary = {"recipe": str(self.recipe.path), "output": str(self.output), "stages": reports}
        write_atomically(self.output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        last = self.recipe.stages[-1]
        if last in stages and (self.output / last.name / RESULT[0]).is_file():
            for file in (self.output / last.name / name for name in RESULT):
                if file.is_file():
                    write_atomically(self.output / file.name, file.read_bytes())
        Console().print(summary_table(summary))
        return summary

    def _check(self, stages: Sequence[Stage]) -> list[Stage]:
        """Find what can be found wrong before hours are spent: options of stages that will run, folders in the way.

        Returns:
            The stages that will run, as far as can be known before the others have.
        """
        waiting: list[Stage] = []
        for stage in stages:
            if not {each.name for each in waiting} & set(stage.needs):
                self.keys[stage.name] = key_of(self.inputs.dependencies(stage, self.keys))
                if StagePlace(self.output, stage.name).kept(self.keys[stage.name]) is not None:
                    continue
            waiting.append(stage)
        for stage in waiting:
            StagePlace(self.output, stage.name).refuse_others()
        if len(waiting) > 1:  # one alone finds its own mistakes at once
            with tempfile.TemporaryDirectory() as folder:
                check_options([(stage.name, self._words(stage, Path(folder) / stage.name)) for stage in waiting])
        return waiting

    def _announce(self, stages: Sequence[Stage], waiting: Sequence[Stage]) -> None:
        """Print the stages and how long they will take."""
        time = self.estimates.text(waiting) if waiting else "nothing to run"
        self.console.print(f"{self.output}: {len(stages)} stages, {len(waiting)} of them to run, {time}")
        for number, stage in enumerate(stages, 1):
            state = self.estimates.text([stage]) if stage in waiting else "kept"
            self.console.print(f"  {number} {stage.name}: {stage.command}, {state}")

    def _words(self, stage: Stage, path: Path) -> list[str]:
        """A stage's command line; its options are written to ``path``."""
        options = stage.resolved(self.output)
        write_atomically(path, yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode())
        return [*stage.command.split(), f"--config={path}"]

    def _stage(self, stage: Stage, title: str, later: Sequence[Stage]) -> dict[str, Any]:
        """Run or keep a stage.

        Args:
            stage: the stage.
            title: its number and name, for people.
            later: the stages that will run after it.

        Returns:
            What ``summary.json`` contains of it.
        """
        place = StagePlace(self.output, stage.name)
        dependencies = self.inputs.dependencies(stage, self.keys)
        key = self.keys[stage.name] = key_of(dependencies)
        record = place.kept(key)
        kept = record is not None
        if record is None:
            time = self.estimates.text([stage])
            rest = f"; with all later stages {self.estimates.text([stage, *later])}" if later else ""
            self.console.print(
                f"[{title}] {stage.command}: {why(place.record(), dependencies)}; {time}{rest}", style="bold"
            )
            record = self._run(stage, place, dependencies, title)
            if not record["resumed"]:
                self.estimates.finish(stage, record["seconds"])
        else:
            self.console.print(f"[{title}] {stage.command}: kept", style="bold")
        shown = {name: value for name, value in record.items() if name not in ("dependencies", "files")}
        return {"name": stage.name, "command": stage.command, "state": "kept" if kept else "done", **shown}

    def _run(self, stage: Stage, place: StagePlace, dependencies: dict[str, Any], title: str) -> dict[str, Any]:
        """Run a stage and write its record.

        Raises:
            StageError: it failed; what it left stays, to go on with.
        """
        resume_arguments = place.resume_arguments(stage) if place.begin(key_of(dependencies)) else None
        if resume_arguments is None:
            place.clear()
        ended = run_process(self._words(stage, place.yaml) + (resume_arguments or []), title)
        if ended.status:
            raise StageError(stage, ended)
        # with what was fetched by the stage itself, and not there before; its code is that of its start
        dependencies = self.inputs.dependencies(stage, self.keys) | {"source": dependencies["source"]}
        self.keys[stage.name] = key_of(dependencies)
        record = {
            "key": self.keys[stage.name],
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(ended.seconds, 1),
            "resumed": resume_arguments is not None,
            "peak_memory": ended.peak_memory,
            "figures": figures_of(place.folder),
            "dependencies": dependencies,
        }
        place.finish(record)
        return record
