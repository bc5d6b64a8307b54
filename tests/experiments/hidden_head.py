"""Grad-CAM of a classifier whose head has a hidden layer, where CAM does not apply: the commands with such a network.

The Grad-CAM paper explains a network with fully connected layers as it is; CAM needs another network: with global
average pooling and one linear layer (Selvaraju et al., ICCV 2017, section 4.1). The commands, with every option:

    python -m tests.experiments.hidden_head fit --config configs/classifier_voc_animals.yaml \
        --model tests.experiments.hidden_head.HiddenHeadTask --output runs/hidden/classifier
    python -m tests.experiments.hidden_head seeds generate --config configs/seeds_voc_animals.yaml \
        --checkpoint runs/hidden/classifier/last.ckpt --output runs/hidden/seeds

The cache is then used as any other, with ``--data.cues_checkpoint runs/hidden/classifier/last.ckpt``.
"""

import sys
from typing import Any

from torch import Tensor, nn

from seeds import explainer, generate_seeds
from seeds.classifier import ClassifierTask
from training.cli import main

POOLED = 7  # positions on a side of the map that the head sees, as VGG-16's
HIDDEN = 512


class HiddenHead(nn.Module):
    """Class scores of a map (B, K, h, w): pooled to 7x7, flattened, a hidden layer and an output layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.out_features = classes
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(POOLED), nn.Flatten(), nn.Linear(channels * POOLED**2, HIDDEN), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(HIDDEN, classes),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps)


class HiddenHeadTask(ClassifierTask):
    """A classifier like that of the recipe, with another head."""

    def __init__(self, classes: list[str], **kwargs: Any) -> None:
        super().__init__(classes, **kwargs)
        self.model.head = HiddenHead(self.model.features.out_channels, len(classes))
        self.model.forward = lambda image: self.model.head(self.model.features(image).float())


if __name__ == "__main__":
    from tests.experiments.hidden_head import HiddenHeadTask as Task  # this file runs under another name

    generate_seeds.ClassifierTask = explainer.ClassifierTask = Task
    sys.exit(main())
