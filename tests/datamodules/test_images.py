import io
import resource
import struct

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from datamodules.errors import InputError, UnreadableError
from datamodules.images import any_size, as_rgb, image_size, normalize, open_windows, read_image, to_uint8
from datamodules.seed_cache.shard import DamagedError

RNG = np.random.default_rng(0)
SMOOTH = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)


def jpeg(**settings) -> bytes:
    file = io.BytesIO()
    Image.fromarray(SMOOTH).save(file, format="JPEG", quality=95, **settings)
    return file.getvalue()


def test_normalize_against_float64():
    images = torch.from_numpy(RNG.integers(0, 256, (2, 3, 5, 7), dtype=np.uint8))
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    expected = (images.numpy().astype(np.float64) / 255 - mean) / std
    result = normalize(images)
    assert result.dtype == torch.float32
    assert np.abs(result.numpy() - expected).max() < 1e-6


def test_to_uint8_inverts_every_value_of_every_channel():
    every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(to_uint8(normalize(every)), every)


def test_further_channels_have_the_averages_of_imagenet():
    pixels = torch.tensor([51, 102, 153, 204, 255], dtype=torch.uint8)[:, None, None]  # 0.2, 0.4, 0.6, 0.8, 1
    expected = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.6 - 0.406) / 0.225, (0.8 - 0.449) / 0.226]
    expected += [(1 - 0.449) / 0.226]
    assert normalize(pixels).flatten().tolist() == pytest.approx(expected, abs=1e-5)
    for count in (1, 2):
        expected = [(value - 0.449) / 0.226 for value in (0.2, 0.4)[:count]]
        assert normalize(pixels[:count]).flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_people_and_the_crf_see_rgb(channels, shown):
    images = RNG.integers(0, 256, (2, channels, 5, 7), dtype=np.uint8)
    assert np.array_equal(to_uint8(normalize(torch.from_numpy(images))).numpy(), images[:, shown])
    image = images[0].transpose(1, 2, 0)
    assert np.array_equal(as_rgb(image), image[..., shown])


def test_to_uint8_cuts_instead_of_wrapping():
    assert to_uint8(torch.full((1, 3, 1, 1), 50.0)).unique().tolist() == [255]
    assert to_uint8(torch.full((1, 3, 1, 1), -50.0)).unique().tolist() == [0]


def test_normalize_leaves_its_argument_alone():
    images = torch.full((1, 3, 2, 2), 7, dtype=torch.uint8)
    normalize(images)
    assert images.unique().tolist() == [7]


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_rgb_as_pillow_reads_it(tmp_path, settings):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(**settings))
    with Image.open(path) as image:
        expected = np.array(image).astype(int)
    result = read_image(path)
    assert result.dtype == np.uint8
    assert np.abs(result - expected).max() <= 4  # decoders may differ by rounding; swapped channels differ by far more


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(jpeg(exif=exif))
    if suffix == "tif":
        with Image.open(path) as image:
            image.save(path, "TIFF", exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image)).astype(int)
    result = read_image(path)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 4
    assert image_size(path) == result.shape[:2]


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_orientation_in_xmp(tmp_path, suffix):
    """The header gives the size of the image that is read."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP)
    how = {"png": {"pnginfo": info}, "tif": {"tiffinfo": {700: XMP.encode()}}}.get(suffix, {"xmp": XMP.encode()})
    Image.new("RGB", (60, 40)).save(tmp_path / f"a.{suffix}", **how)
    expected = (40, 60) if suffix == "jpg" else (60, 40)  # OpenCV, as browsers, ignores it
    assert image_size(tmp_path / f"a.{suffix}") == read_image(tmp_path / f"a.{suffix}").shape[:2] == expected


@pytest.mark.parametrize("form", ["JPEG", "MPO"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_exif", [False, True])
def test_the_orientation_of_a_jpeg_is_that_of_exif_alone(tmp_path, form, channels, with_exif):
    """As in OpenCV and in browsers; Pillow reads it from XMP where the EXIF block has none."""
    exif = Image.Exif()
    exif[0x010F] = "camera"
    image = Image.new("RGB" if channels == 3 else "L", (60, 40))
    settings = {"exif": exif} if with_exif else {}
    if form == "MPO":  # several images, as phones write them
        settings |= {"save_all": True, "append_images": [image]}
    image.save(tmp_path / "a.jpg", form, xmp=XMP.encode(), **settings)
    assert read_image(tmp_path / "a.jpg", channels).shape == (40, 60, channels)
    assert image_size(tmp_path / "a.jpg") == (40, 60)


def test_an_orientation_in_a_text_of_a_png(tmp_path):
    """ImageMagick writes the EXIF block this way."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data, info = exif.tobytes(), PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png", pnginfo=info)
    assert image_size(tmp_path / "a.png") == read_image(tmp_path / "a.png").shape[:2] == (60, 40)


def image_of(mode, *values):
    """An image one pixel high."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


INDEXED = image_of("P", 1, 0)
INDEXED.putpalette([10, 20, 30, 200, 100, 0])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (image_of("L", 7, 250), [(7, 7, 7), (250, 250, 250)]),
        (image_of("LA", (7, 0), (250, 255)), [(7, 7, 7), (250, 250, 250)]),
        (image_of("1", 0, 255), [(0, 0, 0), (255, 255, 255)]),
        (INDEXED, [(200, 100, 0), (10, 20, 30)]),
        (image_of("RGBA", (1, 2, 3, 0), (4, 5, 6, 128)), [(1, 2, 3), (4, 5, 6)]),  # alpha is dropped
        (Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], np.uint16)), [(v, v, v) for v in (0, 0, 1, 128, 255)]),
    ],
    ids=["gray", "gray and alpha", "1 bit", "palette", "alpha", "16 bits"],
)
def test_other_pngs_become_rgb(tmp_path, image, expected):
    path = tmp_path / "a.png"
    image.save(path)
    assert read_image(path)[0].tolist() == [list(pixel) for pixel in expected]


@pytest.mark.parametrize("channels", [3, 1])
def test_images_of_more_rows_than_are_read_at_a_time(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 7, channels), np.uint8)
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(tmp_path / "high.png")
    np.testing.assert_array_equal(read_image(tmp_path / "high.png", channels), pixels)


def test_a_png_of_16_bit_colours_is_read_by_the_high_bytes(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.array([[[65535, 256, 255], [1000, 40000, 0]]], np.uint16))  # blue, green, red
    assert read_image(path).tolist() == [[[0, 1, 255], [0, 156, 3]]]


def test_cmyk_is_converted_without_a_profile(tmp_path):
    path = tmp_path / "a.tif"
    image_of("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)).save(path)
    assert read_image(path)[0].tolist() == [[255, 255, 255], [0, 255, 255], [0, 0, 0]]


def test_the_first_of_several_pages_is_read(tmp_path):
    path = tmp_path / "a.tif"
    image_of("RGB", (1, 2, 3)).save(path, save_all=True, append_images=[image_of("RGB", (9, 9, 9), (9, 9, 9))])
    assert read_image(path).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_tiffs_of_more_than_8_bits_are_not_clipped(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.new(mode, (2, 1)).save(path)
    for channels in (3, 1):
        with pytest.raises(UnreadableError, match=r"a\.tif has .* 8 bits"):
            read_image(path, channels)


@pytest.mark.parametrize(("image", "bands"), [(image_of("L", 7, 250), 1), (image_of("RGBA", (1, 2, 3, 9)), 4)])
def test_other_numbers_of_channels_must_be_the_image_s(tmp_path, image, bands):
    path = tmp_path / "a.png"
    image.save(path)
    assert read_image(path, bands).tolist() == np.array(image).reshape(1, -1, bands).tolist()
    with pytest.raises(UnreadableError, match=rf"a\.png has {bands} bands \({image.mode}\), and in_channels is 2$"):
        read_image(path, 2)
    INDEXED.save(path)
    with pytest.raises(UnreadableError, match=r"a\.png has 3 bands"):
        read_image(path, 1)
    image_of("1", 0, 255).save(path)
    assert read_image(path, 1).tolist() == [[[0], [255]]]
    jpg = tmp_path / "a.jpg"
    jpg.write_bytes(jpeg())
    with pytest.raises(UnreadableError, match=r"a\.jpg has 3 bands \(RGB\), and in_channels is 4$"):
        read_image(jpg, 4)


def test_gray_and_cmyk_jpegs(tmp_path):
    for mode in ("L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(SMOOTH).convert(mode).save(path)
        assert read_image(path).shape == (40, 60, 3)


@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0, 0.97), progressive=st.booleans())
def test_a_truncated_jpeg_is_named(tmp_path_factory, kept, progressive):
    data = jpeg(progressive=progressive)
    path = tmp_path_factory.mktemp("cut") / "cut.jpg"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=r"cut\.jpg cannot be read"):
        read_image(path)


def test_a_thumbnail_does_not_hide_truncation(tmp_path):
    small = io.BytesIO()
    Image.fromarray(SMOOTH[:8, :8]).save(small, format="JPEG")  # its end-of-image marker lies in the header
    data = jpeg()
    header = b"\xff\xe1" + (len(small.getvalue()) + 8).to_bytes(2) + b"Other\x00" + small.getvalue()
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[:2] + header + data[2 : len(data) * 2 // 3])
    with pytest.raises(InputError, match=r"cut\.jpg"):
        read_image(path)


def test_data_behind_the_image_is_no_truncation(tmp_path):
    path = tmp_path / "phone.jpg"
    path.write_bytes(jpeg() + b"film \xff\xda film")
    assert read_image(path).shape == (40, 60, 3)


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return an EXIF block of entries (tag, type, count, value), which Pillow would not write."""
    start, fields, values = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, count, value in entries:
        fields += struct.pack("<HHI", tag, kind, count)
        fields += value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(values))
        values += value if len(value) > 4 else b""
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + b"\0\0\0\0" + values


SIX = (274, 3, 1, struct.pack("<H", 6))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("entries", "turned"),
    [
        ([SIX, (282, 2, 3, b"ab\0")], True), ([SIX, (256, 2, 3, b"60\0")], True),
        ([SIX, (305, 5, 1, struct.pack("<II", 6, 0))], True), ([(274, 1, 1, b"\x06")], True),
        ([(274, 2, 2, b"6\0")], False), ([(274, 3, 1, struct.pack("<H", 600))], False),
    ],
    ids=["text as resolution", "text as width", "ratio as software", "byte", "text", "600"],
)  # fmt: skip
def test_damaged_exif_blocks(tmp_path, form, entries, turned):
    """The orientation counts where it is a number of 1 to 8, also in a damaged block."""
    path = tmp_path / f"a.{form.lower()}"
    Image.fromarray(SMOOTH).save(path, format=form, exif=exif_block(*entries), quality=100, subsampling=0)
    expected = np.rot90(SMOOTH, -1) if turned else SMOOTH
    pixels = read_image(path)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 8
    assert image_size(path) == expected.shape[:2]
    with open_windows(path) as image:
        assert image[:, :].shape == expected.shape


@pytest.mark.parametrize("number", [*range(8)])
@pytest.mark.parametrize("kind", [(1, "<B"), (3, "<H"), (4, "<I"), (7, "<B"), (9, "<i")])
@pytest.mark.parametrize("before", [False, True])
def test_the_header_of_a_jpeg_gives_the_size_of_the_image_that_is_read(tmp_path, number, kind, before):
    """Also where libraries read the EXIF block differently: other types, and a field before it that is damaged."""
    entries = [(274, kind[0], 1, struct.pack(kind[1], number))]
    if before:
        entries.insert(0, (271, 2, 1000, struct.pack("<I", 10**6)))
    path = tmp_path / "a.jpg"
    Image.fromarray(SMOOTH).save(path, format="JPEG", exif=exif_block(*entries))
    assert read_image(path).shape[:2] == image_size(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_in_xmp_counts_in_windows(tmp_path, orientation):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.replace('"6"', f'"{orientation}"'))
    Image.fromarray(SMOOTH).save(tmp_path / "a.png", pnginfo=info)
    with open_windows(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(image[:, :], read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("form", ["BMP", "TIFF"])
def test_a_header_with_a_huge_width(tmp_path, form):
    """One bit of the file: the image cannot be read, with and without the limit of pixels; the memory is not filled."""
    path, file = tmp_path / f"huge.{form.lower()}", io.BytesIO()
    Image.fromarray(SMOOTH).save(file, format=form)
    content = bytearray(file.getvalue())
    place = 18 if form == "BMP" else content.index(struct.pack("<HHI", 256, 4, 1)) + 8
    content[place : place + 4] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(content)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableError, match=r"huge\.\w+ has more than [\d,]+ pixels: .*--tile"):
        read_image(path)
    with pytest.raises(UnreadableError, match=r"huge\."), open_windows(path) as image:
        image[:40, :60]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 1 << 18  # kB: the 6 GB of a strip are not read


def test_a_truncated_png_is_named(tmp_path):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file, format="PNG")
    path = tmp_path / "cut.png"
    path.write_bytes(file.getvalue()[:3000])
    with pytest.raises(InputError, match=r"cut\.png"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_not_an_image(tmp_path, read):
    with pytest.raises(InputError, match=r"nowhere\.jpg"):
        read(tmp_path / "nowhere.jpg")
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg"):
        read(path)


def test_a_worker_s_error_is_its_last_sentence():
    error = InputError("Caught InputError in DataLoader worker process 0.\nOriginal Traceback …\n"
                       "datamodules.errors.InputError: image x is truncated.\n")  # fmt: skip
    assert str(error) == "image x is truncated."
    damaged = DamagedError("Caught DamagedError in DataLoader worker process 0.\nOriginal Traceback …\n"
                           "datamodules.seed_cache.shard.DamagedError: shard x is damaged\n")  # fmt: skip
    assert str(damaged) == "shard x is damaged"
    assert str(InputError("as it is.")) == "as it is."


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6])
def test_images_read_by_windows_are_those_read_as_a_whole(tmp_path, mode, orientation):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB").convert(mode if mode != "RGBA" else "RGB")
    if mode == "RGBA":
        image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(generator.integers(0, 1 << 16, (30, 40), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tif", "jpg"):
        if (suffix, mode) in {("tif", "I;16"), *(("jpg", other) for other in ("RGBA", "LA", "P", "1", "I;16"))}:
            continue
        path = tmp_path / f"image.{suffix}"
        image.save(path, exif=exif)
        whole = read_image(path)
        with open_windows(path) as windows:
            assert windows.shape == whole.shape
            np.testing.assert_array_equal(windows[5:20, 3:9], whole[5:20, 3:9])


def test_a_truncated_image_that_is_read_by_windows(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-5000])
    with pytest.raises(UnreadableError, match=r"a\.png cannot be read"), open_windows(tmp_path / "a.png"):
        pass


def test_a_truncated_jpeg_of_another_name_that_is_read_by_windows(tmp_path):
    """OpenCV would fill its end with gray."""
    Image.fromarray(SMOOTH).save(tmp_path / "a.png", format="JPEG")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    with pytest.raises(UnreadableError, match=r"a\.png cannot be read"), open_windows(tmp_path / "a.png"):
        pass


def test_the_limit_of_pixels_returns_when_contexts_of_threads_overlap():
    limit, first, second = Image.MAX_IMAGE_PIXELS, any_size(), any_size()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None  # the second needs no limit yet
    second.__exit__(None, None, None)
    assert limit == Image.MAX_IMAGE_PIXELS
