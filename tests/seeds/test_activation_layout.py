"""Layouts of a layer's output: maps, channels last, tokens."""

import pytest
import torch

from seeds.activation_layout import as_map, restore_layout


@pytest.mark.parametrize(
    ("shape", "size", "layout", "prefix"),
    [((2, 8, 5, 7), (80, 112), "first", 0), ((2, 5, 7, 8), (80, 112), "last", 0),
     ((2, 7, 7, 7), (224, 224), "first", 0), ((2, 8, 3, 9), (64, 64), "first", 0),
     ((2, 11, 11, 64), (321, 321), "last", 0),
     ((2, 11, 6, 64), (350, 187), "last", 0), ((2, 197, 8), (224, 224), "tokens 14 14", 1),
     ((2, 198, 8), (224, 224), "tokens 14 14", 2), ((2, 201, 8), (224, 224), "tokens 14 14", 5),
     ((2, 196, 8), (224, 224), "tokens 14 14", 0), ((2, 1 + 8 * 12, 8), (128, 192), "tokens 8 12", 1),
     ((2, 30, 8), (224, 224), None, 0), ((2, 8), (64, 64), None, 0), ((3, 8, 5, 7), (80, 112), None, 0)],
)  # fmt: skip
def test_layouts(shape, size, layout, prefix):
    output = torch.randn(shape)
    found = as_map(output, (2, 3, *size))
    if layout is None:
        assert found is None
        return
    expected = {"first": output, "last": output.movedim(3, 1)}.get(layout) if output.dim() == 4 else None
    if layout.startswith("tokens"):
        grid = [int(side) for side in layout.split()[1:]]
        expected = output[:, prefix:].movedim(2, 1).unflatten(2, grid)
    assert torch.equal(found, expected)
    assert found.data_ptr() == expected.data_ptr()  # a view
    restored = restore_layout(found, output)
    assert torch.equal(restored, output)
    assert restored.data_ptr() != output.data_ptr()


def test_outputs_that_are_no_tensors():
    assert as_map([torch.zeros(2, 8, 5, 7)], (2, 3, 80, 112)) is None
