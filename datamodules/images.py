"""Images: reading them, and going to and from what a network sees."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import cv2
import numpy as np
from PIL import Image, ImageOps

from datamodules.errors import InputError, UnreadableError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels, RGB in [0, 1] (torchvision's number)."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File name ends (lower case) taken for images."""

_TRANSPOSED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
_ORIENTATION = 0x0112


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
        raise UnreadableError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ImportError, ValueError) as error:  # such as s3fs, which is not installed
        raise InputError(f"{path} cannot be read: {error}.") from error


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image upright (the EXIF orientation is applied).

    Args:
        path: Path or URI of a JPEG, PNG, or another file that Pillow reads.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        UnreadableError: The file is missing, truncated, or no image.
    """
    with open_file(path) as file:
        try:
            data = file.read()
        except OSError as error:
            raise UnreadableError(f"image {path} cannot be read: {error.strerror or error}.") from error
    if data.startswith(b"\xff\xd8") and _ends_properly(data):
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is not None:  # quicker than Pillow
            return pixels
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"image {path} cannot be read, it is truncated or not an image ({error}).") from error


def _ends_properly(data: bytes) -> bool:
    # OpenCV fills what a truncated JPEG lacks with gray and says nothing. Inside a scan 0xff is always escaped, so an
    # end-of-image marker behind the last start-of-scan marker means that the scan is complete; where there is none
    # (or where a camera appended other data) Pillow decides.
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as `read_image` gives it, from its header alone.

    Raises:
        UnreadableError: The file is missing or no image.
    """
    with open_file(path) as file:
        try:
            with Image.open(file) as image:
                width, height = image.size
                # getexif parses the whole block; most images carry none
                turned = "exif" in image.info and image.getexif().get(_ORIENTATION) in _TRANSPOSED
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableError(f"image {path} cannot be read, it is truncated or not an image ({error}).") from error
    return (width, height) if turned else (height, width)


def normalize(images: Tensor) -> Tensor:
    """What a network with ImageNet weights expects.

    Args:
        images: uint8 (…, 3, H, W), RGB.

    Returns:
        float32 of the same shape and device: (value / 255 - mean) / std of each channel.
    """
    import torch

    mean, std = _statistics(images.device)
    # rearranging bytes first is twice as fast as rearranging floats
    return images.contiguous().to(torch.float32, copy=True).sub_(mean).div_(std)


def to_uint8(images: Tensor) -> Tensor:
    """The images behind normalised ones: the exact inverse of `normalize`, by rounding.

    Args:
        images: float (…, 3, H, W) as `normalize` gives them.

    Returns:
        uint8 of the same shape and device; values that no image has are cut to 0 and 255.
    """
    import torch

    mean, std = _statistics(images.device)
    return images.float().mul(std).add_(mean).round_().clamp_(0, 255).to(torch.uint8)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    import torch

    mean = torch.tensor(IMAGENET_MEAN, device=device).mul_(255)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=device).mul_(255)[:, None, None]
    return mean, std
