"""Reading images, and normalising them for a network."""

from __future__ import annotations

import io
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from datamodules.errors import InputError, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels, RGB in [0, 1], as in torchvision."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Std of ImageNet's pixels, as in torchvision."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes (lower case) of image files."""


def open_file(path: str | Path) -> BinaryIO:
    """Open a local file, or a file that fsspec reads: ``s3://bucket/a.jpg``, ``zip://a.jpg::archive.zip``, ….

    Raises:
        UnreadableError: The file does not exist or cannot be opened.
        InputError: fsspec has no file system for the URI.
    """
    try:
        if "://" not in str(path):
            return Path(path).open("rb")
        import fsspec

        return cast("BinaryIO", fsspec.open(str(path), "rb").open())
    except OSError as error:
        raise UnreadableError(f"image {path} cannot be read: {error.strerror or error}.") from error
    except (ImportError, ValueError) as error:  # such as s3fs, which is not installed
        raise InputError(f"{path} cannot be read: {error}.") from error


@contextmanager
def any_size() -> Iterator[None]:
    """Lift Pillow's limit on the pixels of an image in this process, for images that are processed in tiles."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def open_image(file: BinaryIO, path: str | Path) -> Iterator[Image.Image]:
    """Open a file with Pillow; an error of the context becomes an UnreadableError that names ``path``."""
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnreadableError(f"image {path} cannot be read: it is not an image.") from error
    except Image.DecompressionBombError as error:
        limit = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        raise UnreadableError(f"image {path} has {limit}: let the command process it in tiles (--tile).") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"image {path} cannot be read, it is truncated ({error}).") from error


def read_image(path: str | Path) -> np.ndarray:
    """Read an image and apply its EXIF orientation.

    Args:
        path: Path or URI of a JPEG, PNG, or another file that Pillow reads.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        UnreadableError: The file is missing, truncated, or not an image.
    """
    with open_file(path) as file:
        try:
            data = file.read()
        except OSError as error:
            raise UnreadableError(f"image {path} cannot be read: {error.strerror or error}.") from error
    # OpenCV is faster than Pillow, but fills the missing part of a truncated JPEG with gray, without a warning. Inside
    # a scan 0xff is always escaped, so an end-of-image marker after the last start-of-scan marker means that the scan
    # is complete. Where there is none (or where a camera appended other data) Pillow decides.
    if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"):
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is not None:
            return pixels
    with open_image(io.BytesIO(data), path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of an image as `read_image` returns it, from the header alone.

    Raises:
        UnreadableError: The file is missing or not an image.
    """
    with open_file(path) as file, open_image(file, path) as image:
        # getexif parses the whole block; most images carry none. Orientations 5 to 8 swap width and height
        turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def normalize(images: Tensor) -> Tensor:
    """Return normalised images, the input of networks with ImageNet weights.

    Args:
        images: uint8 (…, 3, H, W), RGB.

    Returns:
        float32 of the same shape and device: (value / 255 - mean) / std of each channel.
    """
    import torch  # here: commands that need no network read files, too

    # making bytes contiguous is twice as fast as making floats contiguous
    pixels = images.contiguous().to(torch.float32, copy=True)
    mean, std = (pixels.new_tensor(each).mul_(255)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.sub_(mean).div_(std)


def to_uint8(images: Tensor) -> Tensor:
    """Return the images before normalisation: the exact inverse of `normalize`, by rounding.

    Args:
        images: float (…, 3, H, W) as `normalize` returns them.

    Returns:
        uint8 of the same shape and device; values outside 0..255 are clamped.
    """
    pixels = images.float()
    mean, std = (pixels.new_tensor(each).mul_(255)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.mul(std).add_(mean).round_().clamp_(0, 255).byte()
