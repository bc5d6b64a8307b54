"""The process of a recipe's stage: ``python -m training.recipes.stage_main fit --config …``, or a check of options."""

import io
import json
import os
import sys
import threading
from contextlib import redirect_stdout

from datamodules.errors import InputError
from training.cli import dispatch, sentence
from training.cli import main as tag2mask
from training.recipes.stage_process import CHECK, WATCHED

__all__ = ["main"]


def _checked(stages: list[tuple[str, list[str]]]) -> dict[str, str]:
    """The first mistake, or nothing: each command is asked to print its options, and reads them for that."""
    for name, words in stages:
        try:
            with redirect_stdout(io.StringIO()):
                dispatch([*words, "--print_config"])
        except SystemExit:  # it has printed
            pass
        except InputError as error:
            return {"stage": name, "message": sentence(error)}
    return {}


def _watch() -> None:
    """End this process when its standard input ends."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)  # nothing to clear up: whatever is on disk is whole, and the same command resumes from it


def main() -> int:
    """Run a stage, or check some."""
    if os.environ.pop(WATCHED, None):  # not for the processes that a stage starts by this same module
        threading.Thread(target=_watch, daemon=True).start()
    if sys.argv[1:] == [CHECK]:
        sys.stdout.write(json.dumps(_checked(json.load(sys.stdin))) + "\n")
        return 0
    return tag2mask()


if __name__ == "__main__":
    sys.exit(main())
