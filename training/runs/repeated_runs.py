"""Several trainings that differ in their seed alone, and how far their figures differ."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from datamodules.files import differences, write_atomically
from datamodules.source_revision import ALL_PACKAGES, source_revision
from training.evaluation.tables import average, sample_std
from training.recipes.stage_process import same_modules
from training.runs.provenance_record import read_record

__all__ = ["fit_repeatedly", "seed_list"]

FREE = (
    "config",
    "ckpt_path",
    "random_seeds",
    "wandb",
)  # of a configuration: a finished run stays the one that was asked for


def seed_list(given: str | list[int] | None) -> list[int]:
    """Seeds as written: ``0,1,2``, or a list.

    Raises:
        InputError: it is something else, or a seed comes twice or is negative.
    """
    try:
        seeds = [int(word) for word in given.split(",")] if isinstance(given, str) else list(given or [])
    except ValueError as error:
        raise InputError(f"seeds are whole numbers, as in --random_seeds 0,1,2; got {given}") from error
    if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
        raise InputError(f"seeds must be different numbers from 0 on, not {given}")
    return seeds


def fit_repeatedly(words: Sequence[str], config: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Train once for each seed, one after the other, each in a process and a folder ``seed-N`` of its own.

    A run that is finished is left as it is, one that was stopped resumes from its last checkpoint, so that the same
    command again does what is still to be done. Then mean and sample standard deviation over the seeds of each figure
    of the last validations are printed, and written to ``repeated_runs.json`` and ``repeated_runs.csv``.

    Args:
        words: the command line, from ``fit`` on.
        config: what it says, in plain values.
        seeds: the seeds.

    Raises:
        InputError: a training fails; a folder holds a finished run of other settings.
    """
    if config["ckpt_path"]:
        raise InputError("--random_seeds resumes what was stopped by itself: leave ckpt_path out")
    output = Path(config["output"])
    for seed in seeds:
        folder = output / f"seed-{seed}"
        if is_finished(folder, {**config, "output": str(folder), "seed_everything": seed}):
            Console().print(f"seed {seed}: finished already, in {folder}", highlight=False)
            continue
        own = [f"--output={folder}", f"--seed_everything={seed}", "--random_seeds=[]"]
        begun = (folder / "config.yaml").exists()
        Console().print(f"seed {seed}: {'resumes' if begun else 'begins'}, in {folder}", highlight=False)
        if status := run_fit([*words, *own, *(["--ckpt_path=last"] if begun else [])]):
            why = f"was ended by signal {-status}" if status < 0 else f"ended with status {status} (see above)"
            raise InputError(f"the training with seed {seed} {why}; the same command resumes there")
    write_figures(output, {seed: read_record(output / f"seed-{seed}").get("figures", {}) for seed in seeds})


def is_finished(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder holds a run that reached its end.

    Args:
        folder: the run's.
        wanted: the configuration it must have been of.

    Raises:
        InputError: it was of another, or of other code; names the first setting that differs.
    """
    record = read_record(folder)
    if not record.get("finished") or not record["attempts"]:
        return False
    last = record["attempts"][-1]
    if last.get("source") != source_revision(ALL_PACKAGES):
        raise InputError(
            f"{folder} holds a finished run of another revision of the code; remove it, or choose another output"
        )
    configs = (last["config"], wanted)
    settings = ({key: value for key, value in each.items() if key not in FREE} for each in configs)
    for key, found, asked in differences(*settings):
        raise InputError(
            f"{folder} holds a finished run with {key} {found!r}, not {asked!r}; give that, or choose another output"
        )
    return True


def run_fit(words: Sequence[str]) -> int:
    """Run a command line of ``tag2mask`` in a process of its own that finds the same modules as this one.

    Returns:
        Its exit status.
    """
    # as a module, which Lightning knows how to start again for further processes
    return subprocess.run([sys.executable, "-m", "training.cli", *words], env=same_modules(), check=False).returncode  # noqa: S603


def write_figures(output: Path, runs: Mapping[int, Mapping[str, float]]) -> None:
    """Print and write mean and standard deviation of the figures that all runs have.

    Args:
        output: folder for ``repeated_runs.json`` and ``repeated_runs.csv``.
        runs: each seed's figures by name.
    """
    output.mkdir(parents=True, exist_ok=True)
    first = next(iter(runs.values()))
    values = {name: [run[name] for run in runs.values()] for name in first if all(name in run for run in runs.values())}
    figures = {name: {"mean": average(each), "std": sample_std(each)} for name, each in values.items()}
    content = {
        "random_seeds": list(runs),
        "figures": figures,
        "runs": {str(seed): dict(run) for seed, run in runs.items()},
    }
    write_atomically(output / "repeated_runs.json", (json.dumps(content, indent=1) + "\n").encode())
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["figure", "mean", "std", *(f"seed-{seed}" for seed in runs)])
    table = Table("figure", title=f"last validation, {len(runs)} seeds")
    for title in ("mean", "std", *(f"seed {seed}" for seed in runs)):
        table.add_column(title, justify="right")
    for name, each in values.items():
        cells = [average(each), sample_std(each), *each]
        writer.writerow([name, *cells])
        table.add_row(Text(name), *("" if value is None else f"{value:.4f}" for value in cells))
    write_atomically(output / "repeated_runs.csv", file.getvalue().encode())
    Console().print(table if values else "the validations gave no figures")
