"""Reading images, and normalising them for a network."""

from __future__ import annotations

import logging
import struct
from contextlib import ExitStack, contextmanager, suppress
from pathlib import PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from datamodules.errors import InputError, UnreadableError, os_errors
from datamodules.files import AnyPath, is_uri, list_folder
from datamodules.geotiff import GeoTiff, is_tiff, open_tiff
from datamodules.progress import print_message
from datamodules.tar_files import open_file

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels, RGB in [0, 1], as in torchvision."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Std of ImageNet's pixels, as in torchvision."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes (lower case) of image files."""

UNREAD_SUFFIXES = frozenset({
    ".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf",
    ".rw2",
})  # fmt: skip
"""Suffixes (lower case) of files that people take for images, and that are not read."""

_ORIENTATION = ExifTags.Base.Orientation

_PILLOW_ERRORS = (  # what Pillow raises on damaged files
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, OverflowError, MemoryError, struct.error,
)  # fmt: skip

_STRIP = 1024  # rows of an image that are converted at a time

logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # it logs what it then raises, too


def list_images(folder: AnyPath) -> list[str]:
    """Return the sorted names of the images in a folder, by their suffixes; hidden files are none.

    Raises:
        OSError: the folder does not exist or cannot be read; ``strerror`` is the reason.
        InputError: fsspec has no file system for the URI.
    """
    return image_names(list_folder(folder)[1])


def image_names(files: Iterable[str]) -> list[str]:
    """Return those names or paths of files that are of images, by their suffixes; hidden files are none."""
    return _with_suffixes(files, IMAGE_SUFFIXES)


def _with_suffixes(files: Iterable[str], suffixes: Container[str]) -> list[str]:
    """Return those names or paths of files that end in one of the suffixes, in lower or upper case; no hidden files."""
    paths = [(name, PurePosixPath(name)) for name in files]
    return [name for name, path in paths if path.suffix.lower() in suffixes and not path.name.startswith(".")]


def report_unread(folder: AnyPath, files: Iterable[str]) -> None:
    """Print how many of the files in a folder are images in a format that is not read, and the first of them.

    Args:
        folder: the folder.
        files: paths relative to it; hidden files do not count.
    """
    if unread := _with_suffixes(files, UNREAD_SUFFIXES):
        print_message(f"{len(unread)} files of {folder} are not read, first {unread[0]}: convert them to JPEG")


class _PixelLimit:
    """Pillow's limit on the pixels of an image, a global variable of all threads, while it is lifted."""

    lock = Lock()
    lifted = 0  # contexts that are open
    pixels: int | None = None


@contextmanager
def any_size() -> Iterator[None]:
    """Lift Pillow's limit on the pixels of an image in this process, for images that are processed in tiles.

    The limit returns when the last of the contexts ends, which may overlap in threads.
    """
    with _PixelLimit.lock:
        if not _PixelLimit.lifted:
            _PixelLimit.pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _PixelLimit.lifted += 1
    try:
        yield
    finally:
        with _PixelLimit.lock:
            _PixelLimit.lifted -= 1
            if not _PixelLimit.lifted:
                Image.MAX_IMAGE_PIXELS = _PixelLimit.pixels


@contextmanager
def open_image(file: BinaryIO, path: str | AnyPath) -> Iterator[Image.Image]:
    """Open a file with Pillow; an error of the context becomes an UnreadableError that names ``path``.

    The orientation of a JPEG is that of its EXIF block alone.
    """
    try:
        with Image.open(file) as image:
            if image.format in ("JPEG", "MPO") and "xmp" in image.info and _ORIENTATION in (exif := image.getexif()):
                block = Image.Exif()
                block.load(image.info.get("exif", b""))
                if _ORIENTATION not in block:
                    del exif[_ORIENTATION]  # Pillow has it from XMP, which OpenCV ignores
            yield image
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError(f"image {path} cannot be read: it is not an image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(_too_large(path)) from error
    except _PILLOW_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise UnreadableError(f"image {path} cannot be read, it is truncated or damaged ({reason})") from error


def _too_large(path: str | AnyPath) -> str:
    limit = f"more than {2 * (Image.MAX_IMAGE_PIXELS or _PixelLimit.pixels or 0):,} pixels"
    return f"image {path} has {limit}: predict, evaluate and seeds generate accept it with --tile"


def upright_array(image: Image.Image) -> np.ndarray:
    """Return the values of an open image, turned by the orientation in its EXIF block.

    `PIL.ImageOps.exif_transpose` does the same, and writes the whole block again, which fails where it is damaged.
    """
    stored = np.array(image)  # this turns a TIFF
    return _upright_pixels(stored, _orientation(image))


def _orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF block of an open image, 1 to 8; 1, upright, where it contains none of them."""
    blocks = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")
    if image.format == "PNG" and image.info.keys().isdisjoint(blocks):
        return 1  # getexif would read all pixels
    found = image.getexif().get(_ORIENTATION)
    if isinstance(found, bytes) and found:
        found = found[0]  # a byte in place of a short number, which OpenCV takes, too
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def read_image(path: str | AnyPath, channels: int = 3) -> np.ndarray:
    """Read an image and apply its EXIF orientation.

    For 3 channels other images become RGB: gray is repeated, a palette is applied, alpha is dropped (the colours under
    transparent pixels become visible), CMYK is converted without a colour profile; of several pages the first is read.
    For another number the image must have that many bands. A 16-bit PNG is read by the high byte of each value: 65535
    is white in a PNG. TIFFs have no such rule: only 8-bit ones are read.

    Args:
        path: path or URI of a JPEG, PNG, or another file that Pillow or, a TIFF, rasterio reads.
        channels: channels of the result.

    Returns:
        uint8 (H, W, channels), RGB where it has 3 channels.

    Raises:
        UnreadableError: the file is missing, truncated, not an image, or has other bands.
    """
    if channels != 3 and is_tiff(path):  # Pillow reads no more than four bands
        return _upright_pixels(_read_tiff(path, channels), _orientation_of(path))
    with open_file(path) as file:
        with os_errors(f"image {path} cannot be read", UnreadableError):
            jpeg = channels == 3 and file.read(2) == b"\xff\xd8"
            file.seek(0)
            data = file.read() if jpeg else b""
        # OpenCV is faster than Pillow, but fills the missing part of a truncated JPEG with gray, without a warning.
        # Inside a scan 0xff is always escaped, so an end-of-image marker after the last start-of-scan marker means that
        # the scan is complete. Where there is none (or where a camera appended other data) Pillow decides.
        if jpeg and data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"):
            pixels: np.ndarray | None = None
            with suppress(cv2.error):  # more pixels than OpenCV allows
                flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION  # Pillow's counts, as in `image_size`
                pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if pixels is not None:
                file.seek(0)
                with open_image(file, path) as image:
                    return _upright_pixels(pixels, _orientation(image))
        try:
            file.seek(0)
            with open_image(file, path) as image:
                return _pixels(image, path, channels)
        except UnreadableError as error:
            if not _only_rasterio_reads(path, error):
                raise
    return _read_tiff(path)


def _upright_pixels(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W) or (H, W, channels) as an orientation of EXIF, 1 to 8, shows them."""
    upright = stored.swapaxes(0, 1) if orientation >= 5 else stored
    upright = upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright
    return np.ascontiguousarray(upright[::-1] if orientation in (3, 4, 7, 8) else upright)


def _read_tiff(path: str | AnyPath, channels: int = 3) -> np.ndarray:
    """Return the pixels of a TIFF that rasterio reads, uint8 (H, W, channels); Pillow's limit on their number holds."""
    with GeoTiff(path, channels) as tiff:
        if Image.MAX_IMAGE_PIXELS is not None and tiff.shape[0] * tiff.shape[1] > 2 * Image.MAX_IMAGE_PIXELS:
            raise UnreadableError(_too_large(path))
        return tiff[:, :]


def _pixels(image: Image.Image, path: str | AnyPath, channels: int) -> np.ndarray:
    """Return the pixels of an open image, uint8 (H, W, channels), turned as by `upright_array`."""
    image.load()  # this turns a TIFF
    orientation, tags = _orientation(image), getattr(image, "tag_v2", {})  # TIFF's
    if image.format == "PNG" and image.mode.startswith("I"):  # 16 bits, by Pillow's version I or I;16
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode.startswith(("I", "F")) or max(tags.get(ExifTags.Base.BitsPerSample, (8,))) > 8:
        raise UnreadableError(f"image {path} has values of more than 8 bits ({image.mode}): scale it to 8 bits")
    if image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    bands = tags.get(ExifTags.Base.SamplesPerPixel, 1) if image.mode == "L" else len(image.getbands())
    if bands != channels if channels != 3 else (image.mode, bands) == ("L", 2):
        raise UnreadableError(f"image {path} has {bands} bands ({image.mode}), and in_channels is {channels}")
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    for top in range(0, image.height, _STRIP):  # Pillow's copies of a large image would take several times its memory
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        rows = np.asarray(strip.convert("RGB") if channels == 3 else strip)
        pixels[top : top + _STRIP] = rows.reshape(-1, image.width, channels)
    return _upright_pixels(pixels, orientation)


def _only_rasterio_reads(path: str | AnyPath, error: UnreadableError) -> bool:
    """Return whether an error of `open_image` is about a TIFF of a kind that Pillow does not know."""
    return is_tiff(path) and isinstance(error.__cause__, UnidentifiedImageError)


@contextmanager
def open_windows(path: str | AnyPath, channels: int = 3) -> Iterator[Any]:
    """Open an image of any size that is read by windows: ``image[top:bottom, left:right]`` is uint8 (h, w, channels).

    A TIFF stays on disk where rasterio can read it and its rows need not be turned. Others are an array in memory.

    Raises:
        UnreadableError: as for `read_image`.
    """
    with any_size(), ExitStack() as context:
        image: Any = None
        if is_tiff(path) and not is_turned(path):
            with suppress(InputError):  # rasterio is missing, or the TIFF is of a kind that Pillow converts
                image = context.enter_context(GeoTiff(path, channels))
        if channels == 3 and not is_uri(path) and _is_png(path) and not is_turned(path):
            with suppress(cv2.error):  # more pixels than OpenCV allows
                image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)  # the pixels of Pillow, in less memory
        if image is None:
            image = read_image(path, channels)
        yield image


def _is_png(path: str | AnyPath) -> bool:
    """Return whether a file begins as a PNG does: of other kinds that are truncated OpenCV reads the first part."""
    with open_file(path) as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def image_size(path: str | AnyPath) -> tuple[int, int]:
    """Return height and width of an image as `read_image` returns it, from the header alone.

    Raises:
        UnreadableError: the file is missing or not an image.
    """
    try:
        with open_file(path) as file, open_image(file, path) as image:
            turned = _orientation(image) >= 5  # these swap width and height
            # Pillow's size of a turned TIFF is that of the upright image already, in some releases
            width, height = (tags[256], tags[257]) if (tags := getattr(image, "tag_v2", None)) else image.size
            return (width, height) if turned else (height, width)
    except UnreadableError as error:
        if not _only_rasterio_reads(path, error):
            raise
    with open_tiff(path) as tiff:
        return int(tiff.height), int(tiff.width)


def is_turned(path: str | AnyPath) -> bool:
    """Return whether an image has an orientation other than upright: rasterio ignores it, and OpenCV some of PNGs."""
    return _orientation_of(path) != 1


def _orientation_of(path: str | AnyPath) -> int:
    """Return the orientation of an image, 1 to 8; 1, upright, for a file that Pillow cannot open."""
    with suppress(UnreadableError), any_size(), open_file(path) as file, open_image(file, path) as image:
        return _orientation(image)
    return 1


def channel_statistics(channels: int) -> tuple[list[float], list[float]]:
    """Return mean and std of each channel for `normalize`, of values in [0, 1].

    ImageNet's for red, green and blue; their averages for each further channel, and for all of fewer than 3 channels.
    """
    statistics = []
    for rgb in (IMAGENET_MEAN, IMAGENET_STD):
        known = list(rgb) if channels >= 3 else []
        statistics.append(known + [sum(rgb) / 3] * (channels - len(known)))
    return statistics[0], statistics[1]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, C) as people and the CRF see it, uint8 (H, W, 3).

    The first three channels; the first one three times where there are fewer than 3.
    """
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., _rgb_channels(image.shape[2])])


def _rgb_channels(channels: int) -> list[int]:
    return [0, 1, 2] if channels >= 3 else [0, 0, 0]


def normalize(images: Tensor) -> Tensor:
    """Return normalised images, the input of networks with ImageNet weights.

    Args:
        images: uint8 (…, C, H, W); RGB where C is 3.

    Returns:
        float32 of the same shape and device: (value / 255 - mean) / std of each channel, see `channel_statistics`.
    """
    import torch  # here: commands that need no network read files, too

    # making bytes contiguous is twice as fast as making floats contiguous
    pixels = images.contiguous().to(torch.float32, copy=True)
    mean, std = _statistics_of(pixels)
    return pixels.sub_(mean).div_(std)


def to_uint8(images: Tensor) -> Tensor:
    """Return the images before normalisation as RGB: the exact inverse of `normalize`, by rounding, then `as_rgb`.

    Args:
        images: float (…, C, H, W) as `normalize` returns them.

    Returns:
        uint8 (…, 3, H, W) on the same device; values outside 0..255 are clamped.
    """
    pixels = images.float()
    mean, std = _statistics_of(pixels)
    found = pixels.mul(std).add_(mean).round_().clamp_(0, 255).byte()
    return found if found.shape[-3] == 3 else found[..., _rgb_channels(found.shape[-3]), :, :]


def _statistics_of(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std (C, 1, 1) of values in 0..255 for images (…, C, H, W), of their dtype and device."""
    mean, std = (pixels.new_tensor(each).mul_(255)[:, None, None] for each in channel_statistics(pixels.shape[-3]))
    return mean, std
