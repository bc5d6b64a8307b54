"""Class activation maps as the irn family keeps them: a file ``<id>.npy`` an image, with a pickled dictionary.

*irn* (Ahn et al., CVPR 2019, ``step/make_cam.py``) writes

=============  ===============================================================================================
``keys``       int64 (k,), a torch tensor: the image's classes, 0..C-1
``cam``        float32 (k, ⌈H/4⌉, ⌈W/4⌉), a torch tensor: maps divided by (their own maximum + 1e-5)
``high_res``   float32 (k, H, W), an array: the same at the image's own size
=============  ===============================================================================================

and its followers the same with arrays throughout. *psa* (Ahn & Kwak, CVPR 2018, ``infer_cls.py``) before it wrote
``{class 0..C-1: float32 (H, W)}``; its files of CRF scores look alike, but there 0 is the background: not those.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files import AnyPath
from datamodules.safe_pickle import load_dict

STRIDE = 4  # of ``cam``
MARGIN = 1e-5  # added to the maximum that maps are divided by, as irn does


def read_irn(path: AnyPath, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the maps of an image: irn's ``cam`` (``high_res`` where there is none), or psa's.

    Args:
        path: the ``.npy`` file; read without running anything in it.
        num_classes: C, without background.

    Returns:
        Classes 0..C-1, int64 (k,), each once, and maps float32 (k, h, w), finite and not negative.

    Raises:
        InputError: the file is missing, damaged, of another kind, or holds anything but arrays and tensors.
    """
    entries = load_dict(path)
    if not entries:  # psa's of an image without a class
        return np.zeros(0, np.int64), np.zeros((0, 1, 1), np.float32)
    if "keys" in entries:
        classes, maps = entries["keys"], entries.get("cam", entries.get("high_res"))
    else:
        shapes = {each.shape if isinstance(each, np.ndarray) else None for each in entries.values()}
        alike = len(shapes) == 1 and None not in shapes
        classes, maps = np.array(list(entries)), np.stack(list(entries.values())) if alike else None
    known = isinstance(classes, np.ndarray) and classes.ndim == 1 and (classes.dtype.kind in "iu" or not classes.size)
    if not known or not np.isin(classes, range(num_classes)).all() or len(np.unique(classes)) < len(classes):
        raise InputError(f"{path}: its classes are not integers in 0..{num_classes - 1}, each once")
    if not isinstance(maps, np.ndarray) or maps.ndim != 3 or len(maps) != len(classes) or maps.dtype.kind != "f":
        raise InputError(f"{path} does not hold one map (h, w) for each of its {len(classes)} classes")
    if not np.isfinite(maps).all() or maps.min(initial=0) < 0 or 0 in maps.shape[1:]:
        raise InputError(f"{path}: its maps are not all finite, not negative and not empty")
    return np.asarray(classes, np.int64), np.asarray(maps, np.float32)


def write_irn(path: Path, classes: NDArray[np.int64], maps: NDArray[np.float32], size: tuple[int, int]) -> None:
    """Write an image's maps as irn does; its later steps read them (with NumPy 1.26 or newer).

    Args:
        path: the ``.npy`` file.
        classes: 0..C-1, (k,).
        maps: float32 (k, h, w), at any size and scale; brought to irn's sizes bilinearly, then scaled as irn does.
        size: (H, W) of the image.

    Raises:
        OSError: it cannot be written.
    """
    import torch  # the format's own tensors; the rest of the file needs none

    height, width = size
    small = _scaled(maps, (-(-height // STRIDE), -(-width // STRIDE)))
    entry = {"keys": torch.from_numpy(classes), "cam": torch.from_numpy(small), "high_res": _scaled(maps, size)}
    np.save(path, entry, allow_pickle=True)  # type: ignore[arg-type]  # numpy.save wraps the dictionary


def _scaled(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    resized = np.zeros((len(maps), *size), np.float32)  # (k, H, W)
    for row, each in zip(resized, maps, strict=True):
        row[:] = cv2.resize(each, size[::-1], interpolation=cv2.INTER_LINEAR)
    resized /= resized.max(axis=(1, 2), keepdims=True) + np.float32(MARGIN)
    return resized
