import errno
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import ExifTags, Image

from datamodules.class_names import mask_lut, voc_palette
from datamodules.errors import InputError
from datamodules.masks import find_masks, mask_size, read_class_mask, read_mask, write_mask


@settings(max_examples=30, deadline=None)
@given(mask=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_round_trip(tmp_path_factory, mask):
    path = tmp_path_factory.mktemp("masks") / "a.png"
    write_mask(path, mask.astype(np.int64))
    result = read_mask(path)
    assert result.dtype == np.uint8
    assert (result == mask).all()
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette().ravel().tolist()
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_the_index_is_read_whatever_its_colour(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    image.putpalette([7] * 768)  # all indices look the same
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1], [2, 255]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16"])
def test_colours_are_no_indices(tmp_path, mode):
    Image.fromarray(np.zeros((4, 4), np.uint8)).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png contains .* not class indices"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_values_of_fewer_bits_are_indices(tmp_path, bits):
    """Viewers and Pillow spread them over 0 to 255."""
    indices = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**bits
    packed = np.zeros((2, bits), np.uint8)
    for column, value in enumerate(indices.T):
        packed[:, column * bits // 8] |= value << (8 - bits - column * bits % 8)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "few.png").write_bytes(content)
    assert read_mask(tmp_path / "few.png").tolist() == indices.tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_viewers_show_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for mode in ("L", "P"):
        image = Image.fromarray(stored)
        image.putpalette(bytes(range(256)) * 3) if mode == "P" else None
        image.save(tmp_path / "m.png", exif=exif)
        turns = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T, 6: stored[::-1].T}
        turns |= {7: stored[::-1, ::-1].T, 8: stored[:, ::-1].T}
        found = read_mask(tmp_path / "m.png")
        assert found.tolist() == turns[orientation].tolist()
        assert mask_size(tmp_path / "m.png") == found.shape


def test_missing_and_truncated(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.png"):
        read_mask(tmp_path / "nowhere.png")
    path = tmp_path / "cut.png"
    write_mask(path, np.random.default_rng(0).integers(0, 20, (50, 50)))
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match=r"cut\.png"):
        read_mask(path)


def test_classes_are_looked_up_and_checked(tmp_path):
    path = tmp_path / "a.png"
    lut = mask_lut(("ant", "bat", "cow"), ("cow", "ant"))
    write_mask(path, np.array([[0, 1, 2, 3, 255]]))
    assert read_class_mask(path, lut).tolist() == [[0, 2, 255, 1, 255]]
    write_mask(path, np.array([[0, 9, 7, 3]]))
    with pytest.raises(InputError, match=r"a\.png contains the index 7, and its classes end at 3"):
        read_class_mask(path, lut)


@pytest.mark.parametrize(("mask", "problem"), [
    (np.zeros((2, 2, 3)), r"\(H, W\) with values 0..255, not of shape \(2, 2, 3\)"),
    (np.array([[-1]]), r"of values 0\.\.255, not of -1\.\.-1"),
    (np.array([[3, 256, 7]]), r"of values 0\.\.255, not of 3\.\.256"),
    (np.zeros((0, 4)), r"\(H, W\) .*not of shape \(0, 4\)"),
])  # fmt: skip
def test_what_is_no_mask_is_not_written(tmp_path, mask, problem):
    with pytest.raises(InputError, match=rf"a\.png must be {problem}"):
        write_mask(tmp_path / "a.png", mask)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_mask(path, np.array([[1]]))

    def full(_image, file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_mask(path, np.array([[2]]))
    monkeypatch.undo()
    assert read_mask(path).tolist() == [[1]]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_masks_are_pngs_or_tiffs(tmp_path):
    """The PNG counts where there are both."""
    mask = np.array([[0, 3, 255]], np.uint8)
    for name, value in (("a.png", mask), ("a.tif", mask + 1), ("b.tif", mask)):
        Image.fromarray(value).save(tmp_path / name)
    found = find_masks(tmp_path, ["b", "c", "a"])
    assert found == [str(tmp_path / "b.tif"), None, str(tmp_path / "a.png")]
    assert read_mask(found[0]).tolist() == read_mask(found[2]).tolist() == mask.tolist()
    assert find_masks(None, ["a"]) == [None]
