"""What the benchmarks share: the time of a call, the peak memory, and the folders of data and configurations.

Programs that measure their memory import this file, so it imports nothing large.
"""

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


def peak_memory() -> float:
    """Return the largest resident size of this process so far, in MB; NaN where the system has no /proc.

    ``ru_maxrss`` does not serve: on Linux a child process starts with the value of its parent.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024  # kB
