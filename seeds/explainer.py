"""A trained classifier and methods of asking it, ready for images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import normalize
from datamodules.transforms import Transform
from seeds.activations import find_layer
from seeds.cam_methods.input_gradients import heat
from seeds.cam_methods.registry import Method, method_class
from seeds.checkpoints import load_task, read_checkpoint
from seeds.classifier import ClassifierTask

AT_ONCE = 16  # images
DEFAULT_SIZE = 320  # of a checkpoint that does not say


class Explainer:
    """A classifier's scores and maps of images.

    Attributes:
        classes: names of the C classes.
        size: side in pixels to which images are warped.
        methods: the methods by name.
    """

    def __init__(
        self, checkpoint: Path, methods: Sequence[str], *, layer: str | None = None, size: int | None = None
    ) -> None:
        """Load a classifier.

        Args:
            checkpoint: of ``tag2mask fit`` with a classifier.
            methods: names out of :data:`seeds.cam_methods.registry.METHODS`.
            layer: the layer within the network; its last map if not given.
            size: side in pixels to which images are warped; the one the classifier was validated at if not given.

        Raises:
            InputError: no such checkpoint, method or layer.
        """
        makers: dict[str, Callable[..., Method]] = {name: method_class(name) for name in methods}
        task = load_task(checkpoint, ClassifierTask)
        stored = read_checkpoint(checkpoint, "classifier").get("datamodule_hyper_parameters") or {}
        self.classes, self.network = task.classes, task.model
        own = int(stored.get("eval_size") or stored.get("size") or DEFAULT_SIZE)
        self.size = own if size is None else size
        name = layer or self.network.default_layer
        find_layer(self.network, name)
        if self.size < 1:
            raise InputError(f"size {self.size} is not a positive number of pixels")
        self.methods: dict[str, Method] = {key: make(self.network, name) for key, make in makers.items()}
        self._transform = Transform(self.size)

    def see(self, image: NDArray[np.uint8]) -> Tensor:
        """An image uint8 (H, W, 3) as the network takes it: float32 (3, S, S)."""
        warped = torch.from_numpy(self._transform(image)["image"]).permute(2, 0, 1)
        return normalize(warped)

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Tensor:
        """Scores (n, C), before any sigmoid, of images (n, 3, S, S)."""
        return torch.cat([self.network(images[i : i + AT_ONCE]) for i in range(0, len(images), AT_ONCE)])

    def maps(self, method: str, image: Tensor, classes: Sequence[int]) -> Tensor:
        """A method's maps of some classes of one image (3, S, S): (k, h, w) or (k, 3, S, S), not normalised."""
        labels = torch.zeros(1, len(self.classes))
        labels[0, list(classes)] = 1
        return self.methods[method](image[None], labels)[0, list(classes)]

    def heats(self, method: str, image: Tensor, classes: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float32]:
        """The same as maps (k, H, W) of an image's own size; negative values are 0."""
        maps = heat(self.maps(method, image, classes)[None])
        large = functional.interpolate(maps, shape, mode="bilinear", antialias=maps.shape[2] > shape[0])
        return large[0].clamp(min=0).numpy()


def names_of(given: str | Sequence[str]) -> list[str]:
    """Names given as a list, or as one word with commas between."""
    words = given.split(",") if isinstance(given, str) else list(given)
    return [word.strip() for word in words if word.strip()]
