"""What the benchmarks share: the time of a call, and the folders of data and configurations."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
DATA = Path(os.environ.get("TAG2MASK_DATA", ROOT.parent / "shared" / "data"))
VOC_ROOT = DATA / "VOCdevkit" / "VOC2012"


def read_config(name: str) -> dict:
    """Return the content of a configuration."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
