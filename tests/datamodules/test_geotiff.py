"""GeoTIFF: windows, bands, masks with the place of the image, and what happens without rasterio."""

import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from datamodules.class_names import voc_palette
from datamodules.errors import UnreadableError
from datamodules.geotiff import GeoTiff, mask_geotiff, read_georeference
from datamodules.images import image_size, open_windows, read_image
from datamodules.tar_files import read_tar
from tests.tars import tar_bytes

rasterio = pytest.importorskip("rasterio")
RNG = np.random.default_rng(0)
CRS = "EPSG:32632"
PLACE = (0.5, 0.0, 600_000.0, 0.0, -0.5, 5_400_000.0)  # 50 cm a pixel


def write(path, bands, *, located=True, **settings):
    """Write a TIFF of bands (C, H, W)."""
    place = {"crs": CRS, "transform": rasterio.Affine(*PLACE)} if located else {}
    count, height, width = bands.shape
    settings = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype} | settings
    with rasterio.open(path, "w", **settings, **place) as file:
        file.write(bands)
    return path


def random_bands(count, dtype=np.uint8):
    return RNG.integers(0, 256, (count, 20, 30)).astype(dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "lzw"},
        {"interleave": "band", "BIGTIFF": "YES"},
    ],
)
def test_windows_and_the_whole_image_have_the_same_pixels(tmp_path, settings):
    bands = random_bands(3)
    path = write(tmp_path / "a.tif", bands, **settings)
    expected = bands.transpose(1, 2, 0)
    assert np.array_equal(read_image(path), expected)
    place = read_georeference(path)
    assert (place.crs, place.transform[:6]) == (rasterio.CRS.from_string(CRS), PLACE)
    with GeoTiff(path) as image:
        assert image.shape == (20, 30, 3)
        for window in (np.s_[:, :], np.s_[3:9, 20:], np.s_[15:99, :4]):
            pixels = image[window]
            assert pixels.dtype == np.uint8
            assert np.array_equal(pixels, expected[window])


def test_an_image_of_400_million_pixels_is_read_by_windows(tmp_path):
    """A sparse file: only the written block exists."""
    path, block = tmp_path / "large.tif", random_bands(3)
    settings = {"driver": "GTiff", "count": 3, "height": 20_000, "width": 20_000, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", **settings, BIGTIFF="YES", SPARSE_OK=True) as file:
        file.write(block, window=((19_000, 19_020), (7_000, 7_030)))
    with GeoTiff(path) as image:
        assert image.shape == (20_000, 20_000, 3)
        assert np.array_equal(image[19_000:19_020, 7_000:7_030], block.transpose(1, 2, 0))


def test_a_uri(tmp_path):
    bands = random_bands(3)
    path = write(tmp_path / "a.tif", bands)
    with GeoTiff(path.as_uri()) as image:
        assert np.array_equal(image[5:9, :], bands.transpose(1, 2, 0)[5:9])


def test_a_tiff_in_an_archive_has_all_its_bands_and_its_place(tmp_path, monkeypatch):
    """The suffix of the member counts, not the end of its URI."""
    bands = random_bands(7)
    seven = write(tmp_path / "seven.tif", bands, photometric="minisblack").read_bytes()
    members = {
        "note.txt": b"first",
        "in/seven.tif": seven,
        "rgb.tif": write(tmp_path / "rgb.tif", bands[:3]).read_bytes(),
    }
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    in_tar = read_tar(tmp_path / "x.tar").members
    for uri in (in_tar["in/seven.tif"], f"zip://in/seven.tif::{tmp_path}/x.zip"):
        assert np.array_equal(read_image(uri, 7), bands.transpose(1, 2, 0)), uri
        assert image_size(uri) == (20, 30)
        assert read_georeference(uri).transform[:6] == PLACE
        with open_windows(uri, 7) as image:
            assert np.array_equal(image[2:5, 3:9], bands.transpose(1, 2, 0)[2:5, 3:9])
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for uri in (in_tar["rgb.tif"], f"zip://rgb.tif::{tmp_path}/x.zip"):
        with pytest.raises(UnreadableError, match="needs the package rasterio"):
            read_georeference(uri)


def test_three_channels_of_other_bands(tmp_path):
    """Red, green and blue are taken of more bands; gray is repeated; a palette is applied."""
    bands = random_bands(7)
    gray = np.repeat(bands[:1].transpose(1, 2, 0), 3, axis=2)
    cases = {
        "infrared": (bands[:4], {"photometric": "rgb"}, bands[:3].transpose(1, 2, 0)),
        "seven": (bands, {"photometric": "rgb"}, bands[:3].transpose(1, 2, 0)),
        "unnamed": (bands[:3], {"photometric": "minisblack"}, bands[:3].transpose(1, 2, 0)),
        "gray": (bands[:1], {}, gray),
        "gray and alpha": (bands[:2], {"ALPHA": "YES"}, gray),
    }
    for name, (stored, settings, expected) in cases.items():
        path = write(tmp_path / f"{name}.tif", stored, **settings)
        assert np.array_equal(read_image(path), expected), name
        with GeoTiff(path) as image:
            assert np.array_equal(image[:, :], expected), name
    path = tmp_path / "palette.tif"
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([10, 20, 30, 200, 100, 0])
    indexed.putpixel((1, 0), 1)
    indexed.save(path)
    for pixels in (read_image(path), GeoTiff(path)[:, :]):
        assert pixels.tolist() == [[[10, 20, 30], [200, 100, 0]]]


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_other_numbers_of_channels_are_read_as_they_are(tmp_path, count):
    bands = random_bands(count)
    path = write(tmp_path / "a.tif", bands, photometric="minisblack")
    assert np.array_equal(read_image(path, count), bands.transpose(1, 2, 0))
    assert image_size(path) == (20, 30)
    with GeoTiff(path, count) as image:
        assert np.array_equal(image[2:5, 3:9], bands.transpose(1, 2, 0)[2:5, 3:9])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_of_a_turned_tiff_are_upright(tmp_path, orientation):
    """As Pillow turns the same image with three bands; its size is known from the header."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)
    bands = [Image.fromarray(band) for band in pixels.transpose(2, 0, 1)]
    for name, mode in (("three.tif", "RGB"), ("four.tif", "RGBA")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.merge(mode, bands[: len(mode)]).save(tmp_path / name, exif=exif)
    four = read_image(tmp_path / "four.tif", 4)
    assert (four[..., :3] == read_image(tmp_path / "three.tif")).all()
    assert four.shape[:2] == image_size(tmp_path / "four.tif")
    with open_windows(tmp_path / "four.tif", 4) as image:
        assert (image[1:4, 2:5] == four[1:4, 2:5]).all()


def test_images_that_do_not_fit_are_named_in_a_sentence(tmp_path):
    path = write(tmp_path / "four.tif", random_bands(4), photometric="minisblack")
    for channels in (3, 5):
        with pytest.raises(UnreadableError, match=rf"four\.tif has 4 bands \(.*\), and in_channels is {channels}$"):
            read_image(path, channels)
    path = write(tmp_path / "two.tif", random_bands(2), photometric="minisblack")  # Pillow would read the first alone
    with pytest.raises(UnreadableError, match=r"two\.tif has 2 bands"):
        read_image(path)
    for dtype in (np.uint16, np.int16, np.float32):
        for count in (1, 3):
            path = write(tmp_path / f"{count}.tif", random_bands(count, dtype))
            for channels in (count, 3):
                with pytest.raises(UnreadableError, match=rf"{count}\.tif has .*values.* 8 bits"):
                    read_image(path, channels)
            with pytest.raises(UnreadableError, match=rf"{count}\.tif has .* values, not 8 bits"):
                GeoTiff(path)
    path = write(tmp_path / "few.tif", random_bands(1) // 16, nbits=4)
    with pytest.raises(UnreadableError, match=r"few\.tif has values of 4 bits, not 8"):
        GeoTiff(path)
    with open_windows(path) as image:
        np.testing.assert_array_equal(image[:, :], read_image(path))
    (tmp_path / "text.tif").write_text("no image")
    for read in (read_image, image_size, GeoTiff):
        with pytest.raises(UnreadableError, match=r"text\.tif"):
            read(tmp_path / "text.tif")


def test_a_truncated_tiff_is_named(tmp_path):
    path = write(tmp_path / "cut.tif", random_bands(5), photometric="minisblack", compress="deflate")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableError, match=r"cut\.tif cannot be read, it is truncated .*IReadBlock failed"):
        read_image(path, 5)


def test_a_mask_has_the_place_of_the_image_and_colours_of_voc(tmp_path):
    place = read_georeference(write(tmp_path / "a.tif", random_bands(3)))
    mask = RNG.integers(0, 21, (20, 30), dtype=np.uint8)
    (tmp_path / "mask.tif").write_bytes(mask_geotiff(mask, place))
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert (file.count, file.crs, file.transform[:6]) == (1, rasterio.CRS.from_string(CRS), PLACE)
        assert np.array_equal(file.read(1), mask)
        assert file.profile["compress"] == "deflate"
        assert [file.colormap(1)[index][:3] for index in range(21)] == list(map(tuple, voc_palette()[:21].tolist()))
    with Image.open(tmp_path / "mask.tif") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), mask)


def test_images_without_a_place(tmp_path):
    assert read_georeference(write(tmp_path / "plain.tif", random_bands(3), located=False)) is None
    assert read_georeference(tmp_path / "photo.jpg") is None
    (tmp_path / "text.tif").write_text("no image")
    assert read_georeference(tmp_path / "text.tif") is None


def test_without_rasterio(tmp_path, monkeypatch):
    """Pillow reads an ordinary TIFF; what needs rasterio names the extra."""
    bands = random_bands(4)
    rgb, plain = write(tmp_path / "rgb.tif", bands[:3]), write(tmp_path / "plain.tif", bands[:3], located=False)
    four = write(tmp_path / "four.tif", bands, photometric="minisblack")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert np.array_equal(read_image(rgb), bands[:3].transpose(1, 2, 0))
    assert read_georeference(plain) is None
    extra = r"needs the package rasterio: pip install -c constraints.txt '\.\[geotiff\]'"
    for act in (lambda: read_georeference(rgb), lambda: read_image(four, 4), lambda: image_size(four)):
        with pytest.raises(UnreadableError, match=extra):
            act()


def test_white_that_is_stored_as_0(tmp_path):
    """GDAL does not invert such values; Pillow does."""
    bands = random_bands(1)
    path = write(tmp_path / "white.tif", bands, photometric="miniswhite")
    with pytest.raises(UnreadableError, match=r"white\.tif stores white as 0 \(MINISWHITE\): save it with black as 0$"):
        GeoTiff(path)
    expected = np.repeat(255 - bands.transpose(1, 2, 0), 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)
    with open_windows(path) as image:
        np.testing.assert_array_equal(image[:, :], expected)


def test_a_block_of_the_whole_image_is_too_large_for_windows(tmp_path):
    """GDAL decodes all of it for each window. A sparse file: nothing of the image is written."""
    path, side = tmp_path / "one.tif", 20_000
    settings = {"driver": "GTiff", "count": 1, "height": side, "width": side, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", **settings, blockxsize=side, blockysize=side, BIGTIFF="YES", SPARSE_OK=True):
        pass
    problem = r"one\.tif is stored in strips of 20000x20000 pixels, too large to be read by windows: save it in tiles$"
    with pytest.raises(UnreadableError, match=problem):
        GeoTiff(path)
