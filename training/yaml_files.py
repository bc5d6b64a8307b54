"""Finding the YAML files that a command line names."""

from pathlib import Path

import yaml

from datamodules.errors import UsageError
from training.messages import nearest

__all__ = ["config_path", "find_configs"]


def find_configs(words: list[str]) -> list[str]:
    """A command line whose `--config name.yaml` may also name a YAML shipped with the package.

    Raises:
        UsageError: there is no such file, or it is no YAML.
    """
    found = list(words)
    for place, word in enumerate(words):
        if word in ("-c", "--config") and place + 1 < len(words):
            found[place + 1] = config_path(words[place + 1])
        elif word.startswith("--config="):
            found[place] = "--config=" + config_path(word.removeprefix("--config="))
    return found


def config_path(name: str) -> str:
    """A YAML's path: the name itself where that is a file, else the one of that name in `configs/`.

    Raises:
        UsageError: there is neither, or it is no YAML.
    """
    import configs

    shipped = Path(configs.__file__).parent / Path(name).name
    path = next((path for path in (Path(name), shipped) if path.is_file()), None)
    if path is None:
        raise UsageError(
            f"there is no file {name}{nearest(shipped.name, [p.name for p in shipped.parent.glob('*.yaml')])}"
        )
    try:
        yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{name}{line}: not YAML: {error.problem}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not a text file") from error
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML has not; a day that the calendar has not
        raise UsageError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error
    return str(path)
