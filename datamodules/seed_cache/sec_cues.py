"""Cue files of the authors of SEC (Kolesnikov & Lampert, ECCV 2016): reading, and writing for their code.

One pickle of Python 2 holds a dictionary; ``input_list.txt`` numbers the images: ``2008_007028.jpg 0``. Of image n:

================  ============================================================================================
``"n_labels"``    int64 (k,): the classes in the image, 1..C, ascending
``"n_cues"``      int64 (3, m): class (0 = background), row and column of each cued position, ascending, on a 41x41 grid
================  ============================================================================================
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files import AnyPath, read_lines
from datamodules.safe_pickle import load_dict
from datamodules.seed_cache.shard import NO_CUE

PICKLE = "localization_cues.pickle"
INPUT_LIST = "input_list.txt"

# Python 2's own opcodes for an int64 array; Python 3's pickles of arrays name modules that no NumPy of Python 2 has.
PICKLED_ARRAY_HEADER = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01("
PICKLED_INT64 = b"cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


class SecCues:
    """A file of cues, read and checked an image at a time.

    Attributes:
        ids: the images in the list's order: their file names without the suffix.
    """

    def __init__(self, path: AnyPath, input_list: AnyPath, num_classes: int, grid: int) -> None:
        """Read the file.

        Args:
            path: the pickle, gzipped or not.
            input_list: which image has which number.
            num_classes: C, without background.
            grid: positions on a side.

        Raises:
            InputError: a file that is missing, damaged or of another kind; a pickle that holds anything but arrays.
        """
        self.path, self.num_classes, self.grid = path, num_classes, grid
        self._entries, self.numbers = load_dict(path), read_input_list(input_list)
        self.ids = tuple(self.numbers)

    def positions(self, name: str) -> NDArray[np.bool_]:
        """Return the cues of an image.

        Returns:
            bool (C+1, grid, grid), channel 0 = background; a position may be cued for several classes.

        Raises:
            InputError: the image has none in the file, or they are not arrays as described above.
        """
        number = self.numbers[name]
        labels, cues = self._integers(f"{number}_labels", 1), self._integers(f"{number}_cues", 2)
        where = f"{self.path}, image {number} ({name}):"
        if labels.size and not 1 <= labels.min() <= labels.max() <= self.num_classes:
            raise InputError(f"{where} its labels are not all in 1..{self.num_classes}")
        limits = np.array([self.num_classes + 1, self.grid, self.grid])
        if len(cues) != len(limits) or (cues < 0).any() or (cues >= limits[:, None]).any():
            inside = f"within 0..{self.num_classes} and a grid of {self.grid}x{self.grid}"
            raise InputError(f"{where} its cues are not (class, row, column) {inside}")
        if not np.isin(cues[0], np.append(labels, 0)).all():
            raise InputError(f"{where} a class has cues and is not among the labels")
        cued = np.zeros(limits, np.bool_)
        cued[tuple(cues)] = True
        if cued.sum() != cues.shape[1]:
            raise InputError(f"{where} a position is cued for the same class twice")
        return cued

    def _integers(self, key: str, dimensions: int) -> NDArray[np.int64]:
        value = self._entries.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim != dimensions:
            raise InputError(f"{self.path}: entry {key!r} is not an array of integers of {dimensions} dimensions")
        return value.astype(np.int64)


def read_input_list(path: AnyPath) -> dict[str, int]:
    """Return the number of each image, by its file name without the suffix.

    Raises:
        InputError: the list is missing, malformed, empty, or names an image or a number twice.
    """
    numbers: dict[str, int] = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        match line.split():
            case []:
                continue
            case [file, number] if number.isdecimal() and number.isascii() and Path(file).stem not in numbers:
                numbers[Path(file).stem] = int(number)
            case _:
                raise InputError(f"{path}, line {line_number}: expected a new image and its number, found {line!r}")
    if not numbers or len(set(numbers.values())) < len(numbers):
        raise InputError(f"the list {path} {'gives a number twice' if numbers else 'is empty'}")
    return numbers


def sec_files(images: Sequence[tuple[str, NDArray[np.integer], NDArray[np.uint8]]]) -> dict[str, bytes]:
    """Return the contents of SEC's two files for images in their order, with the types of the authors' files.

    The pickle is one of Python 2: for its cPickle, and for Python 3 with latin1.

    Args:
        images: id, labels 1..C (k,), and label map uint8 (h, w) of each: 0 = background, 1..C, 255 = no cue.

    Returns:
        Content by file name.

    Raises:
        InputError: an id has a space or a slash, which readers of the list take for the end of a name or for a folder.
    """
    for name, _, _ in images:
        if len(name.split()) != 1 or "/" in name:
            raise InputError(f"the id {name!r} has a space or a slash, which SEC's list of images excludes")
    pickled, lines = io.BytesIO(), []
    pickled.write(b"\x80\x02}(")
    for number, (name, labels, cues) in enumerate(images):
        cued = np.flatnonzero(cues.ravel() != NO_CUE)
        order = cued[np.argsort(cues.ravel()[cued], kind="stable")]
        positions = np.stack([cues.ravel()[order], *np.divmod(order, cues.shape[1])])
        for key, array in ((f"{number}_labels", np.sort(labels)), (f"{number}_cues", positions)):
            content = np.ascontiguousarray(array, "<i8").tobytes()
            pickled.write(b"X" + len(key).to_bytes(4, "little") + key.encode("ascii") + PICKLED_ARRAY_HEADER)
            pickled.writelines(b"J" + size.to_bytes(4, "little") for size in array.shape)
            pickled.write(b"t" + PICKLED_INT64 + b"\x89T" + len(content).to_bytes(4, "little") + content + b"tb")
        lines.append(f"{name}.jpg {number}\n")
    pickled.write(b"u.")
    return {PICKLE: pickled.getvalue(), INPUT_LIST: "".join(lines).encode()}
