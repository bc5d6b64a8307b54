import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datamodules.errors import InputError
from datamodules.images import image_size, normalize, read_image, to_uint8

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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(exif=exif))
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image)).astype(int)
    result = read_image(path)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 4
    assert image_size(path) == result.shape[:2]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "a.png"
    Image.fromarray(SMOOTH).convert(mode).save(path)
    assert read_image(path).shape == (40, 60, 3)


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
    assert str(InputError("as it is.")) == "as it is."
