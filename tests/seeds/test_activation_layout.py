"""Layouts of a layer's output: maps, channels last, tokens."""

import pytest
import torch

from seeds.activation_layout import Layout, layout_of


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((2, 8, 5, 7), (80, 112), Layout("first", 5, 7)), ((2, 5, 7, 8), (80, 112), Layout("last", 5, 7)),
     ((2, 7, 7, 7), (224, 224), Layout("first", 7, 7)), ((2, 8, 3, 9), (64, 64), Layout("first", 3, 9)),
     ((2, 11, 11, 64), (321, 321), Layout("last", 11, 11)), ((2, 11, 6, 64), (350, 187), Layout("last", 11, 6)),
     ((2, 197, 8), (224, 224), Layout("tokens", 14, 14, 1)), ((2, 198, 8), (224, 224), Layout("tokens", 14, 14, 2)),
     ((2, 201, 8), (224, 224), Layout("tokens", 14, 14, 5)), ((2, 196, 8), (224, 224), Layout("tokens", 14, 14, 0)),
     ((2, 1 + 8 * 12, 8), (128, 192), Layout("tokens", 8, 12, 1)), ((2, 30, 8), (224, 224), None),
     ((2, 8), (64, 64), None)],
)  # fmt: skip
def test_layouts(shape, size, expected):
    assert layout_of(torch.zeros(shape), size) == expected


def test_a_given_grid():
    assert layout_of(torch.zeros(1, 16, 3), (100, 37), (5, 3)) == Layout("tokens", 5, 3, 1)
    assert layout_of(torch.zeros(1, 16, 3), (100, 37), (5, 4)) is None
    assert layout_of(torch.zeros(1, 4, 6, 3), None, (4, 6)) == Layout("last", 4, 6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 4, 5, 3), (2, 22, 3)])
def test_there_and_back(shape):
    output = torch.randn(shape)
    layout = {5: Layout("first", 4, 5), 3: Layout("last", 4, 5)}[shape[-1]]
    if len(shape) == 3:
        layout = Layout("tokens", 4, 5, 2)
    positions = layout.to_map(output)
    assert positions.shape == (2, 3, 4, 5)
    assert torch.equal(layout.from_map(positions, output), output)
