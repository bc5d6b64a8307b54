"""Several trainings that differ only in their seed, and mean and standard deviation of their figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from datamodules.errors import InputError
from datamodules.files import read_json_or_empty, write_json
from datamodules.progress import print_result
from datamodules.setting_differences import differences
from datamodules.source_revision import ALL_PACKAGES, source_revision
from training.child_process import run_process
from training.runs.provenance_record import PROVENANCE_FILE

IGNORED_SETTINGS = ("config", "ckpt_path", "output", "random_seeds", "wandb")  # a run is kept though they differ


def seed_list(given: str | list[int] | None) -> list[int]:
    """Return seeds given as ``0,1,2`` or as a list.

    Raises:
        InputError: they are something else, or a seed comes twice or is out of range.
    """
    try:
        seeds = [int(word) for word in given.split(",")] if isinstance(given, str) else list(given or [])
    except ValueError as error:
        raise InputError(f"seeds are whole numbers, as in --random_seeds 0,1,2; got {given}") from error
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 1 << 32 for seed in seeds):
        raise InputError(f"seeds must be different numbers from 0 to 4294967295, not {given}")
    return seeds


def fit_repeatedly(words: Sequence[str], config: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Train once for each seed, one after the other, each in its own process and folder ``seed-N``.

    A finished run is kept, an interrupted one resumes from its last checkpoint. Then mean and sample standard deviation
    over the seeds of each figure of the last validations are printed and written, see `write_figures`.

    Args:
        words: command line, from ``fit`` on.
        config: its configuration, in plain values.
        seeds: the seeds.

    Raises:
        InputError: a training fails; a folder holds a run of other settings or other code.
    """
    if config["ckpt_path"]:
        raise InputError("--random_seeds resumes what was stopped by itself: leave ckpt_path out")
    output = Path(config["output"])
    folders = {seed: output / f"seed-{seed}" for seed in seeds}
    for seed, folder in folders.items():
        record = read_json_or_empty(folder / PROVENANCE_FILE)
        finished = bool(record.get("finished"))
        if finished or (folder / "last.ckpt").is_file():
            if not record.get("attempts"):
                raise InputError(f"{folder} holds a checkpoint and no {PROVENANCE_FILE} of its run: move or remove it")
            last = record["attempts"][-1]
            changes = {"seed_everything": seed, "revision": source_revision(ALL_PACKAGES)}
            for key, before, now in differences(last["config"] | {"revision": last["source"]}, {**config, **changes}):
                on_other_machine = not finished and (key.startswith("trainer.") or key.endswith(".num_workers"))
                if key.partition(".")[0] not in IGNORED_SETTINGS and not on_other_machine:
                    kind = "a finished run" if finished else "a run"
                    raise InputError(f"{folder} holds {kind} with {key} {before!r}, not {now!r}")
        if finished:
            print_result(f"seed {seed}: finished already, in {folder}")
            continue
        resumes = (folder / "config.yaml").exists()
        print_result(f"seed {seed}: {'resumes' if resumes else 'begins'}, in {folder}")
        arguments = [f"--output={folder}", f"--seed_everything={seed}", "--random_seeds=[]"]
        arguments += ["--ckpt_path=last"] if resumes else []
        if status := run_process([*words, *arguments], f"seed {seed}"):
            how = f"was ended by signal {status - 128}" if status > 128 else f"ended with status {status} (see above)"
            raise InputError(f"the training with seed {seed} {how}; the same command resumes there")
    records = {seed: read_json_or_empty(folder / PROVENANCE_FILE) for seed, folder in folders.items()}
    write_figures(output, {seed: record.get("figures", {}) for seed, record in records.items()})


def write_figures(output: Path, runs: dict[int, dict[str, float]]) -> None:
    """Print and write mean and sample standard deviation of the figures that all runs have.

    Args:
        output: folder for ``repeated_runs.json``.
        runs: figures of each seed by name.
    """
    table = Table("figure", "mean", "std", *(f"seed-{seed}" for seed in runs), title="last validation")
    figures: dict[str, dict[str, float | None]] = {}
    for name in next(iter(runs.values())):
        values = [run[name] for run in runs.values() if name in run]
        if len(values) == len(runs):
            figures[name] = {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}
            row = (*figures[name].values(), *values)
            table.add_row(name, *("" if value is None else f"{value:.4f}" for value in row))
    write_json(output / "repeated_runs.json", {"random_seeds": list(runs), "figures": figures, "runs": runs})
    print_result(table if figures else "the validations gave no figures")
