"""Shared settings and fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start, too: bits are compared
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytest
import torch

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real VOC images, ImageNet weights and released cues; not part of the project."""
    folder = Path(os.environ.get("TAG2MASK_DATA", SHARED))
    if not folder.is_dir():
        pytest.skip(f"real images are not here ({folder}); set TAG2MASK_DATA to their folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def float32_where_precision_is_auto() -> Iterator[None]:
    """Tests compute the same on every processor; those of the choice itself take the function from `seeds`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seeds.precision.computes_bfloat16", lambda _accelerator: False)
        yield
