"""GeoTIFF by rasterio, an optional extra: images read by windows, and masks with the CRS and transform of an image."""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from datamodules.class_names import voc_palette
from datamodules.errors import UnreadableError, first_line, import_extra
from datamodules.files import AnyPath, is_uri, uri_path
from datamodules.tar_files import open_file, read_content

if TYPE_CHECKING:
    from collections.abc import Iterator

TIFF_SUFFIXES = (".tif", ".tiff")
"""Suffixes (lower case) of TIFF files."""

_CACHE = 256 << 20  # bytes of decoded blocks that GDAL keeps; by default 5 % of the machine's memory

_LARGEST_BLOCK = 1 << 28  # pixels; GDAL decodes whole blocks, and a damaged header may announce one of any size

_GEO_TAGS = {33550, 33922, 34264, 34735}  # TIFF's tags of the pixel scale, tie points, transform and CRS


class Georeference(NamedTuple):
    """Where an image lies on the Earth.

    Attributes:
        crs: coordinate reference system, a `rasterio.crs.CRS`; None where it is not known.
        transform: `affine.Affine` from (column, row) to coordinates of the CRS.
    """

    crs: Any
    transform: Any


def is_tiff(path: str | AnyPath) -> bool:
    """Return whether a path or URI has the suffix of a TIFF."""
    name = uri_path(str(path)) if is_uri(path) else str(path)  # the URI of a file in an archive ends with the archive
    return name.lower().endswith(TIFF_SUFFIXES)


class GeoTiff:
    """An 8-bit TIFF that is read by windows: ``image[top:bottom, left:right]`` is uint8 (h, w, C).

    A context manager; the file is open until the context ends. A TIFF behind a URI is loaded whole, compressed as it
    is. TIFF's orientation tag is ignored, as in all programs of GDAL.

    Args:
        path: path or URI of the TIFF.
        channels: C. For 3, a gray band is repeated, a palette is applied, and of an image with more bands than red,
            green and blue those three are read. Otherwise the image must have C bands.

    Attributes:
        shape: (H, W, C).

    Raises:
        UnreadableError: the file is no TIFF, is not of 8 bits, has another number of bands, stores white as 0 or pixels
            in too large blocks; rasterio is missing.
    """

    def __init__(self, path: str | AnyPath, channels: int = 3) -> None:
        self._path, self._context = path, ExitStack()
        self._file = self._context.enter_context(open_tiff(path))
        file, colors = self._file, [each.name for each in self._file.colorinterp]
        self.shape = (file.height, file.width, channels)
        self._palette: np.ndarray | None = None
        if channels == 3 and colors == ["palette"]:
            self._palette = np.zeros((256, 3), np.uint8)
            for index, color in file.colormap(1).items():
                self._palette[index] = color[:3]
        gray = colors in (["gray"], ["gray", "alpha"])
        repeated = channels == 3 and (gray or self._palette is not None)
        self._bands = [1] if repeated else list(range(1, channels + 1))
        fits, problem = file.count == channels and colors != ["palette"], ""
        if wrong := set(file.dtypes) - {"uint8"}:
            problem = f"has {min(wrong)} values, not 8 bits: scale it, such as by gdal_translate -ot Byte -scale"
        elif bits := file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
            problem = f"has values of {bits} bits, not 8: save it with 8 bits"
        elif file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE"):
            problem = "stores white as 0 (MINISWHITE): save it with black as 0"
        elif not (repeated or fits or (channels == 3 and colors[:3] == ["red", "green", "blue"])):
            problem = f"has {file.count} bands ({', '.join(colors)}), and in_channels is {channels}"
        elif math.prod(block := file.block_shapes[0]) > _LARGEST_BLOCK:
            strips = f"strips of {block[0]}x{block[1]} pixels"
            problem = f"is stored in {strips}, too large to be read by windows: save it in tiles"
        if problem:
            self._context.close()
            raise UnreadableError(f"image {path} {problem}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._context.close()

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Return the pixels of a window, uint8 (h, w, C); its slices have step 1, and end at the image's borders.

        Raises:
            UnreadableError: the file is truncated.
        """
        rows, columns = (range(*each.indices(side)) for each, side in zip(window, self.shape[:2], strict=True))
        where = ((rows.start, rows.stop), (columns.start, columns.stop))
        try:
            bands: np.ndarray = self._file.read(self._bands, window=where)  # (bands, h, w)
        except (OSError, MemoryError) as error:
            reason = first_line(error.__cause__ or error)  # GDAL's; rasterio's own message only refers to it
            problem = f"cannot be read, it is truncated or damaged ({reason})"
            raise UnreadableError(f"image {self._path} {problem}") from error
        if self._palette is not None:
            bands = self._palette[bands[0]].transpose(2, 0, 1)
        repeated = np.broadcast_to(bands, (self.shape[2], *bands.shape[1:]))
        return np.ascontiguousarray(repeated.transpose(1, 2, 0))


@contextmanager
def open_tiff(path: str | AnyPath) -> Iterator[Any]:
    """Open a TIFF: a `rasterio.DatasetReader`.

    Raises:
        UnreadableError: the file does not exist or is no TIFF, or rasterio is not installed.
    """
    rasterio = import_extra("rasterio", "geotiff", str(path), UnreadableError)
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE))
        try:
            source: Any = path
            if is_uri(path):
                source = files.enter_context(rasterio.MemoryFile(read_content(path)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                file = files.enter_context(rasterio.open(source, driver="GTiff"))
        except OSError as error:  # rasterio's errors are of this type
            raise UnreadableError(f"image {path} cannot be read: {error.strerror or first_line(error)}") from error
        yield file


def read_georeference(path: str | AnyPath) -> Georeference | None:
    """Return the place of an image on the Earth; None for an image without one, and for an unreadable one.

    Raises:
        InputError: the image is a GeoTIFF, and rasterio is not installed.
    """
    if not is_tiff(path):
        return None
    if find_spec("rasterio"):
        try:
            with open_tiff(path) as file:
                located = file.crs is not None or not file.transform.is_identity
                return Georeference(file.crs, file.transform) if located else None
        except UnreadableError:
            return None
    geotiff, unreadable = False, (UnreadableError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
    with suppress(*unreadable), open_file(path) as file, Image.open(file) as image:
        geotiff = not _GEO_TAGS.isdisjoint(getattr(image, "tag_v2", ()))
    if geotiff:
        import_extra("rasterio", "geotiff", str(path), UnreadableError)
    return None


def mask_geotiff(mask: np.ndarray, georeference: Georeference) -> bytes:
    """Return a mask as the bytes of a GeoTIFF: one 8-bit band with VOC's colours, tiled and compressed.

    Args:
        mask: uint8 (H, W).
        georeference: CRS and transform of the image.

    Raises:
        InputError: rasterio is not installed.
    """
    rasterio = import_extra("rasterio", "geotiff", "a GeoTIFF")
    height, width = mask.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", height=height, width=width, count=1, dtype="uint8", crs=georeference.crs,
            transform=georeference.transform, photometric="palette", compress="deflate", tiled=True, bigtiff="if_safer",
        ) as file:  # fmt: skip
            file.write_colormap(1, dict(enumerate(map(tuple, voc_palette().tolist()))))
            file.write(mask, 1)
        content: bytes = memory.read()
    return content
