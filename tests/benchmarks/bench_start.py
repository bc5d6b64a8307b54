"""Start-up time of commands: ``python -m tests.benchmarks.bench_start [--quick]``.

Processor seconds of whole processes, each as a share of ``python -c "import torch"``, measured in turn; medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.measure import ROOT
from tests.seed_caches import CacheWriter

TORCH = [sys.executable, "-c", "import torch"]


def processor_seconds(command: list[str]) -> float:
    """User and system time of a process and of those it waited for."""
    before = psutil.Process().cpu_times()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    after = psutil.Process().cpu_times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def commands(folder: Path) -> dict[str, list[str]]:
    """Command lines by what they do; a small cache and evaluation for them are written to a folder."""
    with CacheWriter(folder / "cache", ("ant", "bat"), {}) as writer:
        for index in range(100):
            maps, saliency = np.ones((1, 41, 41), np.float32), np.eye(41, dtype=np.float32)
            cues = np.zeros((41, 41), np.uint8)
            writer.add(f"p{index}", cues, map_classes=np.array([1]), maps=maps, saliency=saliency)
    (folder / "metrics.json").write_text('{"miou": 0.5, "iou": {"ant": 0.5}, "images": 3}')
    cache = f"--cache={folder / 'cache'}"
    lines = {f"{name} --help": [*name.split(), "--help"] for name in ("evaluate", "seeds generate", "predict", "run")}
    lines |= {
        "compare A B": ["compare", str(folder / "metrics.json"), str(folder / "metrics.json")],
        "seeds info": ["seeds", "info", cache],
        "seeds verify": ["seeds", "verify", cache],
        "seeds threshold": ["seeds", "threshold", cache, "--overwrite=true", f"--output={folder / 'other'}"],
        "fit --help (Lightning's)": ["fit", "--help"],
    }
    return {name: [sys.executable, "-m", "training.cli", *words] for name, words in lines.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of each in place of five")
    runs = 1 if parser.parse_args(arguments).quick else 5
    table = Table("command", "processor seconds", "share of import torch", title=f"medians of {runs} runs, in turn")
    with tempfile.TemporaryDirectory() as temporary:
        for name, command in commands(Path(temporary)).items():
            processor_seconds(command)  # to fill the caches of the system
            pairs = [(processor_seconds(command), processor_seconds(TORCH)) for _ in range(runs)]
            share = statistics.median(own / torch for own, torch in pairs)
            table.add_row(name, f"{statistics.median(own for own, _ in pairs):.2f}", f"{share:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
