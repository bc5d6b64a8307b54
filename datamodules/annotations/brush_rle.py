"""Run lengths of Label Studio's brush masks: the run-length encoding of thi.ng/umbrella.

A stream of bits, the highest of each byte first: the number of values (32 bits), the bits of a value - 1 (5), and four
sizes - 1 (4 bits each). Then come runs: one bit, 1 for a repeated value and 0 for single values; the index of a size
(2 bits); the length - 1, in as many bits as that size; and the value, or the values. Label Studio encodes the four
channels of an image this way; a pixel belongs to the mask where its fourth channel is not 0.
"""

import numpy as np

from datamodules.errors import InputError

_SIZES = (3, 4, 8, 16)  # those of Label Studio's own files
_LONGEST = 1 << _SIZES[-1]


def encode_brush(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a mask, as Label Studio reads them: bytes as integers.

    Args:
        mask: bool (H, W).
    """
    values = np.repeat(mask.ravel(), 4)
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]) + 1, values.size)
    bits = [f"{values.size:032b}{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    start = 0
    for end in ends.tolist():
        value = f"{255 * int(values[start]):08b}"
        while start < end:
            length = min(end - start, _LONGEST)
            index = next(index for index, size in enumerate(_SIZES) if length <= 1 << size)
            bits.append(f"1{index:02b}{length - 1:0{_SIZES[index]}b}{value}")
            start += length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def decode_brush(packed: list[int], height: int, width: int) -> np.ndarray:
    """Return the mask of run lengths.

    Args:
        packed: bytes as integers.
        height: H of the image.
        width: W of the image.

    Returns:
        bool (H, W).

    Raises:
        InputError: they are no run lengths, or not those of an image of this size; the message is the end of a
            sentence.
    """
    problem = f"has brush run lengths that are not those of an image of {height} x {width} pixels (height, width)"
    try:
        text = "".join(f"{byte:08b}" for byte in bytes(packed))
    except (TypeError, ValueError) as error:
        raise InputError(problem) from error
    if len(text) < 53 or int(text[:32], 2) != height * width * 4:
        raise InputError(problem)
    count, word = height * width * 4, int(text[32:37], 2) + 1
    sizes = [int(text[start : start + 4], 2) + 1 for start in range(37, 53, 4)]
    alpha = np.zeros(count, bool)
    position, bit = 0, 53
    while position < count:
        size = sizes[int(text[bit + 1 : bit + 3] or "0", 2)]
        first = bit + 3 + size  # of the values
        length = int(text[bit + 3 : first] or "0", 2) + 1
        repeated = text[bit : bit + 1] == "1"
        bit = first + word * (1 if repeated else length)
        if bit > len(text) or position + length > count:
            raise InputError(problem)
        if repeated:
            alpha[position : position + length] = "1" in text[first:bit]
        else:
            alpha[position : position + length] = ["1" in text[at : at + word] for at in range(first, bit, word)]
        position += length
    return alpha[3::4].reshape(height, width)
