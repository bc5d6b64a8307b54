"""Masks: palette or gray PNGs and TIFFs in which the index is the class, or instances that are rendered."""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from datamodules.class_names import ILLEGAL, voc_palette
from datamodules.errors import InputError
from datamodules.files import AnyPath, existing_files, join_path, write_atomically
from datamodules.image_ids import unicode_forms
from datamodules.images import image_size, open_image, upright_array
from datamodules.tar_files import open_file

_GRAY_STEPS = {"L;2": 85, "L;4": 17}  # between the values of 2 and 4 bits, which Pillow spreads over 0 to 255


@dataclass(frozen=True, slots=True)
class RleMask:
    """A mask that is rendered from the instances of an image: about 200 bytes of memory an instance.

    Attributes:
        name: name in messages.
        size: (H, W).
        indices: index of each instance, from the first that is painted to the last, which covers the others.
        counts: pixels of each instance, run lengths as pycocotools compresses them.
    """

    name: str = field(compare=False, repr=False)  # it contains the path of a file, on which no result depends
    size: tuple[int, int]
    indices: bytes
    counts: tuple[bytes, ...]

    @classmethod
    def from_regions(
        cls, name: str, size: tuple[int, int], regions: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> "RleMask":
        """Return a mask in which a smaller region covers a larger one.

        Args:
            name: name in messages.
            size: (H, W).
            regions: index and run lengths of each region, as pycocotools compresses them.
        """
        painted = sorted(regions, key=lambda region: -int(coco_mask.area(region[1])))
        counts = tuple(rle["counts"] for _, rle in painted)
        return cls(name, size, bytes(index for index, _ in painted), counts)

    @classmethod
    def from_label_map(cls, name: str, label_map: np.ndarray) -> "RleMask":
        """Return a label map, uint8 (H, W), as run lengths; ``name`` is its name in messages."""
        regions = [(int(index), encode_mask(label_map == index)) for index in np.unique(label_map) if index]
        height, width = label_map.shape
        return cls.from_regions(name, (height, width), regions)

    def __str__(self) -> str:
        return self.name

    def render(self) -> np.ndarray:
        """Return the indices, uint8 (H, W); 0 where no instance is."""
        mask = np.zeros(self.size, np.uint8)
        for index, counts in zip(self.indices, self.counts, strict=True):
            mask[coco_mask.decode({"size": self.size, "counts": counts}) == 1] = index
        return mask


def encode_mask(pixels: np.ndarray) -> dict[str, Any]:
    """Return the run lengths of a mask, bool (H, W), as pycocotools compresses them."""
    return dict(coco_mask.encode(np.asfortranarray(pixels, np.uint8)))


_SUFFIXES = (".png", ".tif")  # of masks; `predict` writes those of GeoTIFFs as TIFFs


def mask_folder(root: AnyPath, masks: str | None, candidates: Sequence[str]) -> AnyPath | None:
    """Return the folder of masks that a setting names.

    Args:
        root: folder of the data set.
        masks: a folder in ``root``, or an absolute path; ``auto`` for the first of ``candidates`` that exists; None for
            none.
        candidates: usual names.

    Raises:
        InputError: a folder is named, and does not exist.
    """
    if masks == "auto":
        masks = next((name for name in candidates if (root / name).is_dir()), None)
    if masks is None:
        return None
    folder = join_path(root, masks)
    if not folder.is_dir():
        raise InputError(f"there is no folder of masks {folder}: name another, or none (null)")
    return folder


def find_masks(folder: AnyPath | None, ids: Sequence[str]) -> list[str | None]:
    """Return ``folder``/``id``.png or else ``folder``/``id``.tif of each id where there is such a file, else None.

    Accents may have another form in the file's name, as macOS writes them.
    """
    if folder is None:
        return [None] * len(ids)
    names = [[f"{form}{suffix}" for form in unicode_forms(name) for suffix in _SUFFIXES] for name in ids]
    files = existing_files(folder, itertools.chain(*names))
    return [next((str(folder / name) for name in each if name in files), None) for each in names]


def mask_size(mask: str | AnyPath | RleMask) -> tuple[int, int]:
    """Return height and width of a mask without reading its pixels; an UnreadableError as for `read_mask`."""
    return mask.size if isinstance(mask, RleMask) else image_size(mask)


def require_same_size(name: str, size: Sequence[Any], other: str, wanted: Sequence[Any]) -> None:
    """Raise an InputError where two sizes differ; its message has width x height.

    Args:
        name: what has the first size, such as ``mask a.png``.
        size: its height and width, perhaps followed by channels.
        other: what has the second size, such as ``its image a.jpg``.
        wanted: its height and width, perhaps followed by channels.
    """
    if tuple(size[:2]) != tuple(wanted[:2]):
        raise InputError(f"{name} is {size[1]}x{size[0]}, and {other} is {wanted[1]}x{wanted[0]}")


def read_mask(path: str | AnyPath | RleMask) -> np.ndarray:
    """Read or render the indices of a mask.

    Args:
        path: path or URI of a palette or 8-bit gray PNG or TIFF, or instances.

    Returns:
        uint8 (H, W), turned by the orientation that the file may record, as images are.

    Raises:
        UnreadableError: the file is missing, truncated or not an image.
        InputError: the file contains colours instead of indices.
    """
    if isinstance(path, RleMask):
        return path.render()
    with open_file(path) as file:
        return decode_mask(file, path)


def decode_mask(file: BinaryIO, name: str | AnyPath) -> np.ndarray:
    """Return the indices of an open mask file, see `read_mask`; ``name`` is its name in messages."""
    with open_image(file, name) as image:
        tile = next(iter(getattr(image, "tile", ())), ("", (), 0, ""))
        stored = tile[3][0] if isinstance(tile[3], tuple) else tile[3]  # how, such as L;4
        mode, indices = image.mode, upright_array(image)
    if mode == "L" and stored in _GRAY_STEPS:
        indices //= _GRAY_STEPS[stored]
    if mode not in ("P", "L"):
        kind = "1-bit" if mode == "1" else mode
        raise InputError(f"mask {name} contains {kind} values, not class indices: save a palette or 8-bit gray PNG")
    return indices


def read_class_mask(path: str | AnyPath | RleMask, lut: np.ndarray) -> np.ndarray:
    """Read a mask and map its indices to the chosen classes.

    Args:
        path: as for `read_mask`.
        lut: uint8 (256,), see `datamodules.class_names.mask_lut`.

    Returns:
        uint8 (H, W): 0 background, 1..C, 255 ignore.

    Raises:
        InputError: as for `read_mask`; or an index is above the number of classes.
    """
    return map_indices(read_mask(path), lut, path)


def map_indices(indices: np.ndarray, lut: np.ndarray, name: str | AnyPath | RleMask) -> np.ndarray:
    """Return the classes of a mask's indices, see `read_class_mask`; ``name`` is the mask's name in messages."""
    mask: np.ndarray = cv2.LUT(indices, lut)
    if (mask == ILLEGAL).any():
        index, highest = indices[mask == ILLEGAL].min(), np.flatnonzero(lut == ILLEGAL)[0] - 1
        raise InputError(f"mask {name} contains the index {index}, and its classes end at {highest} (255 is ignored)")
    return mask


def mask_png(mask: np.ndarray, name: str = "a mask") -> bytes:
    """Return a mask as the bytes of a palette PNG with VOC's colours.

    Args:
        mask: integers (H, W) in 0..255.
        name: name of the mask in an error message.

    Raises:
        InputError: the mask has another shape or values that do not fit.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise InputError(f"{name} must be (H, W) with values 0..255, not of shape {tuple(mask.shape)}")
    if mask.min() < 0 or mask.max() > 255:
        raise InputError(f"{name} must be of values 0..255, not of {mask.min()}..{mask.max()}")
    image = Image.fromarray(mask.astype(np.uint8, copy=False))
    image.putpalette(voc_palette().tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask as a palette PNG with VOC's colours, atomically.

    Args:
        path: the file; its folder is made if necessary.
        mask: integers (H, W) in 0..255.

    Raises:
        InputError: as for `mask_png`, or the file cannot be written.
    """
    write_atomically(Path(path), mask_png(mask, f"a mask for {path}"))
