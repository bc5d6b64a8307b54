"""A trained classifier with CAM methods: its scores of images, and each method's maps."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.files import AnyPath
from datamodules.images import normalize
from datamodules.transforms import Transform
from seeds.activations import find_layer
from seeds.cam_methods.input_gradients import channel_maximum
from seeds.cam_methods.registry import Method, method_class
from seeds.checkpoints import load_task
from seeds.classifier import ClassifierTask

CHUNK = 16  # images at a time through the network
DEFAULT_SIZE = 320  # for checkpoints of a training without this project's data modules


class Explainer:
    """A classifier and CAM methods, on the GPU if there is one; images and results are on the CPU.

    Attributes:
        classes: names of the C classes.
        size: side in pixels to which images are resized.
        in_channels: channels of the images.
        methods: the methods by name.

    Args:
        checkpoint: a classifier's, of ``tag2mask fit``.
        methods: names in `seeds.cam_methods.registry.METHODS`.
        layer: the layer within the network; by default as in `seeds.generate_seeds`.
        size: side in pixels to which images are resized; by default the size of the classifier's validation.

    Raises:
        InputError: no such checkpoint, method or layer, or the size is below 1.
    """

    def __init__(
        self, checkpoint: AnyPath, methods: Sequence[str], *, layer: str | None = None, size: int | None = None
    ) -> None:
        task, content = load_task(checkpoint, ClassifierTask)
        settings = content.get("datamodule_hyper_parameters", {})
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.classes, self.in_channels = task.classes, task.model.features.in_channels
        self.network = task.model.to(self.device)
        self.size = int(settings.get("eval_size", DEFAULT_SIZE)) if size is None else size
        layer = layer or self.network.default_layer
        find_layer(self.network, layer)
        if self.size < 1:
            raise InputError(f"size {self.size} is not a positive number of pixels")
        self.methods: dict[str, Method] = {name: method_class(name)(self.network, layer) for name in methods}
        self._transform = Transform(self.size)

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Return an image uint8 (H, W, in_channels) as the network's input, float32 (in_channels, S, S)."""
        return normalize(torch.from_numpy(self._transform(image)["image"]).permute(2, 0, 1))

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Tensor:
        """Return the scores (n, C), before any sigmoid, of images (n, in_channels, S, S)."""
        return torch.cat([self.network(part.to(self.device)).cpu() for part in torch.split(images, CHUNK)])

    def maps(self, method: str, image: Tensor, classes: Sequence[int]) -> Tensor:
        """Return a method's maps of classes of one image: (k, h, w) or (k, in_channels, S, S), not normalised."""
        labels = torch.zeros(1, len(self.classes), device=self.device)
        labels[0, list(classes)] = 1
        return self.methods[method](image[None].to(self.device), labels)[0, list(classes)].cpu()


def resized_maps(maps: Tensor, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return maps of `Explainer.maps`, one channel each, resized bilinearly to (k, H, W); negatives are 0."""
    single = channel_maximum(maps[None])
    large = functional.interpolate(single, shape, mode="bilinear", antialias=True)
    return large[0].clamp(min=0).numpy()
