"""Resizing of label maps."""

import numpy as np
import torch

from datamodules.transforms import resize_nearest
from seeds.score_maps import resize_labels


def test_label_maps_are_resized_as_masks_are():
    """Also where the centre of an output position is between two positions: that of 20 of 41 is at 1.0 of 2."""
    assert resize_labels(torch.tensor([[[0, 1]]]), (1, 41))[0, 0, 20] == 1
    for side in range(1, 65):
        labels = np.arange(side, dtype=np.uint8)[None].repeat(2, axis=0)
        for wanted in range(1, 65):
            resized = resize_labels(torch.from_numpy(labels)[None].long(), (3, wanted))
            np.testing.assert_array_equal(resized[0].numpy(), resize_nearest(labels, 3, wanted))
            across = resize_labels(torch.from_numpy(labels.T.copy())[None].long(), (wanted, 3))
            np.testing.assert_array_equal(across[0].numpy(), resize_nearest(labels.T, wanted, 3))
