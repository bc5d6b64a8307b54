"""The ``tag2mask`` command: a dictionary of functions, and Lightning's ``fit``, ``validate`` and ``test``.

Every option can be given on the command line or in a YAML (``--config FILE``; the later one counts), and
``--print_config`` prints the YAML. The options of a command are the arguments of its function.
"""

import io
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from datamodules.errors import InputError, UsageError
from seeds.distributed import require_one_process
from training.child_process import exit_with_starter
from training.memory_allocator import keep_freed_memory

LIGHTNING = {
    "fit": "train a classifier or a segmentation network",
    "validate": "compute the validation figures of a training again: mAP, or mIoU without the CRF",
    "test": "compute the same figures on the test split; for IoU of a network use evaluate",
}
# For each command its function, imported only when it is called so that --help is fast, and its line of help.
FUNCTIONS = {
    "zero-shot": ("seeds.zero_shot:zero_shot", "write a classifier that compares images with texts by CLIP"),
    "seeds generate": ("seeds.generate_seeds:generate_seeds", "localize the tags of images with a classifier"),
    "seeds threshold": ("seeds.threshold_seeds:threshold_seeds", "threshold the maps of a seed cache again"),
    "seeds refine": ("seeds.refine_seeds:refine_seeds", "refine a seed cache by a random walk and a CRF"),
    "seeds evaluate": ("seeds.evaluation.evaluate_seeds:evaluate_seeds", "score a seed cache against masks"),
    "seeds show": ("training.show_seeds:show_seeds", "write a page that compares the cues of several seed caches"),
    "seeds merge": ("datamodules.seed_cache.index:merge_cache", "write the index of a complete seed cache"),
    "seeds verify": ("datamodules.seed_cache.cache:verify_cache", "check every byte of a seed cache"),
    "seeds info": ("datamodules.seed_cache.cache:print_info", "print the settings and sources of a seed cache"),
    "seeds import": ("seeds.import_seeds:import_seeds", "convert seeds of other tools to a seed cache"),
    "seeds export": ("seeds.export_seeds:export_seeds", "convert a seed cache to files of other tools"),
    "pseudo-label": ("training.pseudo_labels:pseudo_label", "label training images by a trained network: a seed cache"),
    "check": ("datamodules.check_data:check_data", "check images and tags before a training, and list what to correct"),
    "review": ("training.review:review", "rank training images by how doubtful their labels and tags are"),
    "plan": ("training.annotation_plan:plan", "print the expected gain in mIoU from some hours of annotation"),
    "evaluate": ("training.evaluation.evaluate:evaluate", "score a segmentation checkpoint or masks: IoU per class"),
    "compare": ("training.evaluation.compare:compare", "compare the figures of several evaluations"),
    "predict": ("training.predict:predict", "write masks for images"),
    "export": ("training.export:export", "write a network as TorchScript, ONNX or for segmentation_models_pytorch"),
    "explain": ("training.explain:explain", "draw where a classifier looks, by many CAM methods"),
}  # fmt: skip
RECIPE = {"run": "run all stages of a recipe, and keep those that have not changed"}
GROUPS = {
    "from tags to masks": ("check", "run", "predict"),
    "trainings": tuple(LIGHTNING),
    "training labels": ("zero-shot", "seeds generate", "seeds threshold", "seeds refine", "pseudo-label"),
    "seed caches": (
        "seeds evaluate", "seeds show", "seeds info", "seeds verify", "seeds merge", "seeds import", "seeds export",
    ),
    "results": ("evaluate", "compare", "explain", "export"),
    "annotation": ("review", "plan"),
}  # fmt: skip
"""The commands by their purpose, as ``--help`` lists them."""
# functions that several processes share, as Lightning's, or that compute a partition in each process
SHARED = ("seeds generate", "seeds refine", "pseudo-label", "predict")


def run() -> None:
    """Run the console script: `main` with the arguments and exit status of the process."""
    exit_with_starter()
    sys.exit(main(sys.argv[1:]))


def main(args: Sequence[str]) -> int:
    """Run one command.

    Args:
        args: words after ``tag2mask``.

    Returns:
        The exit status: 0 success, 1 unusable input, 2 a mistake on the command line or in a YAML (both are reported in
        one sentence on standard error), 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a log file shows each line at once
    try:
        dispatch(list(args))
    except SystemExit as leave:  # the parser's, after --help and --print_config; a library's may have a text
        if leave.code is None or isinstance(leave.code, int):
            return leave.code or 0
        message, status = str(leave.code), 1
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except (OSError, ValueError) as error:
        cause: BaseException | None = error  # the parser wraps the error of a class named in a YAML
        while cause is not None and not isinstance(cause, InputError | OSError):
            handled = cause.__context__  # an OSError that was handled is not why another error was raised
            cause = cause.__cause__ or (None if isinstance(handled, OSError) else handled)
        if cause is None:
            raise
        if isinstance(cause, OSError):  # no such file, no permission, no space left
            name = f": {cause.filename}" if cause.filename else ""
            message, status = f"{cause.strerror or cause}{name}", 1
        else:
            message, status = " ".join(str(cause).split()), cause.status
    else:
        return 0
    sys.stderr.write(f"tag2mask: {message}\n")
    return status


def dispatch(words: list[str]) -> None:
    """Run the command that the words begin with.

    torch and Lightning take seconds to import; they are imported only by commands that need them.
    """
    first = words[0] if words else "--help"
    if first in ("-h", "--help") or (first == "seeds" and words[1:] in ([], ["-h"], ["--help"])):
        sys.stdout.write(overview())
        return
    if first == "--version":
        sys.stdout.write(f"tag2mask {version('tag2mask')}\n")
        return
    from training.parsers import find_configs, nearest, run_function

    length = 2 if first == "seeds" else 1
    name, options = " ".join(words[:length]), words[length:]
    if name in RECIPE:
        require_one_process(name)
        from training.recipes.run_recipe import run_recipe

        run_recipe(options, [*LIGHTNING, *FUNCTIONS], dispatch)
        return
    quiet_known_warnings()
    keep_freed_memory()
    if name in LIGHTNING:
        from training.lightning_cli import run_lightning

        run_lightning(find_configs(words), LIGHTNING)
    elif name in FUNCTIONS:
        if name not in SHARED:
            require_one_process(name)
        run_function(*FUNCTIONS[name], name, find_configs(options))
    else:
        raise UsageError(f"there is no command '{name}'{nearest(name, [*LIGHTNING, *FUNCTIONS, *RECIPE])}")


def overview() -> str:
    """Return the page of ``--help``: the commands in groups, in a line each."""
    about = LIGHTNING | {name: line for name, (_, line) in FUNCTIONS.items()} | RECIPE
    rows = "\n".join(
        f"{title}:\n" + "".join(f"  {name:<18}{about[name]}\n" for name in names) for title, names in GROUPS.items()
    )
    return f"""usage: tag2mask COMMAND [--config FILE.yaml] [--option value ...]

Segmentation networks from image tags alone: tags -> classifier -> Grad-CAM -> labels -> network -> masks.

{rows}
Each command: --help lists its options, --print_config writes them as YAML, --config reads them from one.
--version prints the version.
"""


def quiet_known_warnings() -> None:
    """Silence warnings of libraries that no user of this program can act upon."""
    for message in (
        r".*module\(s\) in eval mode at the start of training.*",  # frozen stages are meant to be
        r".*does not have many workers.*",  # two workers suffice; num_workers is in every YAML
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
        r".*Precision bf16-mixed is not supported by the model summary.*",
        r".*have no `validation_step`.*",  # the affinities have no figure of validation
        r".*Total length of `list` across ranks is zero.*",  # val_split: null, no validation
        r".*No positive samples found in target, recall is undefined.*",  # such a class has no average precision here
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of images that are read; those that cannot be are reported
    # Lightning advertises a logging service at the start of every run
    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    log.addFilter(lambda line: not re.search("litlogger|litmodels", line.getMessage()))


if __name__ == "__main__":
    run()
