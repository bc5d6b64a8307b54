"""The `tag2mask` command: one program, one way of giving options, one sentence when something is wrong.

Every option can be written on the command line or in a YAML file (`--config FILE`; what comes later wins), and
`--print_config` writes the YAML of what is given. `fit`, `validate` and `test` are Lightning's; the others are
plain functions whose arguments are the options.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from datamodules.errors import InputError
from seeds.distributed import require_one_process
from training.allocator import keep_freed_memory

# No command speaks to the network unasked; albumentations would look for a newer self on import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

LIGHTNING = {
    "fit": "train a classifier or a segmentation network",
    "validate": "a checkpoint's figures on the validation split",
    "test": "a checkpoint's figures on the test split",
}
RECIPE = {"run": "a whole recipe by one command, stage by stage; what has not changed is kept"}
# Plain functions: where each is (imported only when called, so that `--help` answers at once) and its line of help.
FUNCTIONS = {
    "synthesize": ("datamodules.synthetic:synthesize", "write the embedded data set as a VOC folder"),
    "seeds generate": (
        "seeds.generate:generate_seeds",
        "localize the tags of images by a classifier and Grad-CAM: a seed cache",
    ),
    "seeds evaluate": ("seeds.evaluation.evaluate_seeds:evaluate_seeds", "score a seed cache against masks"),
    "seeds import": ("seeds.import_seeds:import_seeds", "convert seeds of other tools to a seed cache"),
    "seeds export": ("seeds.export_seeds:export_seeds", "convert a seed cache to files of other tools"),
    "seeds threshold": (
        "seeds.threshold:threshold_seeds",
        "threshold the maps of a seed cache again",
    ),
    "seeds refine": (
        "seeds.refine:refine_seeds",
        "refine a seed cache by a random walk along learned affinities, and the CRF",
    ),
    "seeds show": (
        "training.show_seeds:show_seeds",
        "a page of images by stages: the cues of several seed caches",
    ),
    "seeds verify": ("datamodules.seed_cache:verify_cache", "check every byte of a seed cache"),
    "seeds info": ("datamodules.seed_cache:print_info", "print the settings and sources of a seed cache"),
    "pseudo-label": (
        "training.pseudo_labels:pseudo_label",
        "label training images by a trained network and their tags, as a seed cache to train on again",
    ),
    "evaluate": (
        "training.evaluation.evaluate:evaluate",
        "score a segmentation checkpoint or a folder of masks: per-class IoU, metrics.json, a page of images",
    ),
    "compare": (
        "training.evaluation.compare:compare",
        "the figures of several evaluations side by side: compare A B ...",
    ),
    "predict": ("training.predict:predict", "write masks for images"),
    "export": ("training.export:export", "write a trained network as TorchScript, ONNX or SMP's own files"),
    "explain": ("training.explain:explain", "figures of where a classifier looks, by many CAM methods"),
}
SHARED = (
    "seeds generate",
    "seeds refine",
    "pseudo-label",
)  # those that several processes do together, as Lightning's commands
OVERVIEW = (
    *("synthesize", "fit", "validate", "test"),
    *("seeds generate", "seeds threshold", "seeds refine", "seeds evaluate", "seeds show"),
    *("seeds verify", "seeds info", "seeds import", "seeds export"),
    *("pseudo-label", "evaluate", "compare", "predict", "export", "explain", "run"),
)


def run() -> None:
    """The console script: `main` with the process's own arguments, leaving with its exit status."""
    sys.exit(main())


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: the words after `tag2mask`; the process's own when None.

    Returns:
        The exit status: 0 done, 1 something handed in is unusable, 2 the command line or a YAML is wrong (both told
        in one sentence on standard error), 130 interrupted.
    """
    words = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a log file shows each line when it is written
    try:
        dispatch(words)
    except InputError as error:
        return complain(sentence(error), error.status)
    except ValueError as error:  # a class named in a YAML refused its arguments: the parser wraps what it said
        if (behind := input_error_behind(error)) is None:
            raise
        return complain(sentence(behind), behind.status)
    except OSError as error:  # no such file, no permission, no space left: the system's own words, and the file's name
        name = f": {error.filename}" if error.filename else ""
        return complain(f"{error.strerror or error}{name}", 1)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except SystemExit as leave:  # --help and --print_config end so inside the parser
        return leave.code if isinstance(leave.code, int) else 0
    return 0


def dispatch(words: list[str]) -> None:
    """Find the command that the words begin with, and run it with the rest of them."""
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        say(overview())
    elif first == "--version":
        say(f"tag2mask {version('tag2mask')}")
    elif first == "seeds" and (len(words) == 1 or words[1] in ("-h", "--help")):
        say(overview("seeds"))
    elif first in RECIPE:
        from training.recipes.run import run_recipe

        run_recipe(words[1:], [*LIGHTNING, *FUNCTIONS])
    else:
        run_command(words)


def run_command(words: list[str]) -> None:
    """Run a command proper. Imports happen here: torch and Lightning take seconds, and help should not."""
    quiet_known_warnings()
    keep_freed_memory()
    from datamodules.errors import UsageError
    from training.messages import nearest
    from training.parsers import run_function
    from training.yaml_files import find_configs

    length = 2 if words[0] == "seeds" else 1
    name = " ".join(words[:length])
    if name in LIGHTNING:
        from training.lightning_cli import run_lightning

        run_lightning(find_configs(words))
    elif name in FUNCTIONS:
        if name not in SHARED:
            require_one_process(name)
        target, about = FUNCTIONS[name]
        run_function(target, about, name, find_configs(words[length:]))
    else:
        raise UsageError(f"there is no command '{name}'{nearest(name, OVERVIEW)}")


def overview(group: str = "") -> str:
    """The page of `--help`: the commands (of a group), a line each."""
    about = LIGHTNING | RECIPE | {name: line for name, (_, line) in FUNCTIONS.items()}
    rows = [f"  {name:<18}{about[name]}" for name in OVERVIEW if name.startswith(group)]
    return "\n".join(
        [
            f"usage: tag2mask {group}{' ' if group else ''}COMMAND [--config FILE.yaml] [--option value ...]",
            "",
            "Segmentation networks from image tags alone: tags -> classifier -> Grad-CAM seeds -> SEC -> masks.",
            "",
            *rows,
            "",
            "Each command: --help lists its options, --print_config writes them as YAML, --config reads them from one.",
            "--version prints the version.",
        ],
    )


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The InputError from which an exception came, if it came from one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def sentence(error: Exception) -> str:
    """An error's one sentence; one from a data-loading worker arrives wrapped in that process's traceback."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Caught "):
        return lines[-1].partition(": ")[2]
    return " ".join(line.strip() for line in lines)


def complain(message: str, status: int) -> int:
    """Tell what is wrong on standard error, and pass the exit status on."""
    sys.stderr.write(f"tag2mask: {message}\n")
    return status


def say(text: str) -> None:
    """Write to standard output."""
    sys.stdout.write(text + "\n")


def quiet_known_warnings() -> None:
    """Silence warnings of libraries that no user of this program can act upon."""
    for message in (
        r".*module\(s\) in eval mode at the start of training.*",  # frozen stages are meant to be
        r".*does not have many workers.*",  # two workers suffice; num_workers is in every YAML
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Previous log files in this directory will be deleted.*",  # they are kept, see training.runs.csv_logger
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
        r".*Precision bf16-mixed is not supported by the model summary.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    # Lightning advertises a logging service at the start of every run
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda line: "litlogger" not in line.getMessage()
    )


if __name__ == "__main__":
    run()
