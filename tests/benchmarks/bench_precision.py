"""The default precision beside float32: ``python -m tests.benchmarks.bench_precision [--quick]``.

Steps of `fit --config classifier_voc_animals.yaml` as it stands (``precision: auto``) and with
``--trainer.precision 32-true``, in turn in one run, each in its own process; the last row is the ratio of the
medians, at most 1.1 on any processor. Images are real where they are there, else those of the embedded data set.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from seeds.precision import resolve_precision
from tests.benchmarks.bench_step import apart, available_data, words_of
from tests.benchmarks.measure import read_config

CONFIG = "classifier_voc_animals"
PRECISIONS = ("auto", "32-true")
STEPS, WARM = 5, 3


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn with batches of four images")
    quick = parser.parse_args(arguments).quick
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = available_data(read_config(CONFIG), folder, 36 if quick else 160, embedded=quick)
        words = words_of(settings | ({"batch_size": 4} if quick else {}))
        for turn in range(1 if quick else 3):
            for precision in PRECISIONS:
                own = [*words, f"--trainer.precision={precision}"]
                measured = apart(CONFIG, own, folder / f"{precision}-{turn}", STEPS, WARM)
                seconds[precision].append(float(measured.parts.sum(0)[0]))
    title = f"a step of {CONFIG}.yaml, {torch.get_num_threads()} threads; auto is {resolve_precision('auto', 'cpu')}"
    table = Table("precision", "seconds a step, each turn", "median", title=title)
    medians = {precision: statistics.median(each) for precision, each in seconds.items()}
    for precision, each in seconds.items():
        table.add_row(precision, ", ".join(f"{value:.2f}" for value in each), f"{medians[precision]:.2f}")
    table.add_row("ratio", "", f"{medians['auto'] / medians['32-true']:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
