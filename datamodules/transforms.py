"""Resizing and random augmentation of an image together with its mask, cues and points."""

import math
import os
import random
from dataclasses import dataclass
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else importing albumentations looks for newer versions online

import albumentations as A  # noqa: N812
import cv2
import numpy as np

from datamodules.errors import InputError

_NEAREST = cv2.INTER_NEAREST_EXACT  # samples at pixel centres; INTER_NEAREST at pixel corners


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images.

    Attributes:
        crop: range of the area that a random crop keeps, as a fraction of the image; its aspect ratio differs from
            the image's by at most 3/4 … 4/3. None for no crop.
        flip: mirror an image with probability 0.5.
        color: strength of the colour jitter: brightness, contrast and saturation change by up to this fraction and
            the hue by up to an eighth of it (of a full turn); 0 for none. Of images with other than 3 channels
            only brightness and contrast change.

    Raises:
        InputError: ``crop`` is no range within 0..1, or ``color`` is not at least 0 and below 1.
    """

    crop: tuple[float, float] | None = (0.4, 1.0)
    flip: bool = True
    color: float = 0.3

    def __post_init__(self) -> None:
        if self.crop is not None:
            low, high = self.crop
            if not 0 < low <= high <= 1:
                raise InputError(f"augment.crop is {list(self.crop)}, and must be a range of areas within (0, 1]")
            object.__setattr__(self, "crop", (float(low), float(high)))  # YAML and checkpoints hold lists
        if not 0 <= self.color < 1:
            raise InputError(f"augment.color is {self.color}, and must be at least 0 and below 1")


class _RelativeCrop(A.RandomResizedCrop):  # type: ignore[misc]
    """A random resized crop whose aspect ratio is relative to the aspect ratio of the image.

    In albumentations the aspect ratio is absolute: a 4:3 image would be distorted in evaluation, and rarely in
    training.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        height, width = params["shape"][:2]
        area = self.py_random.uniform(*self.scale)
        ratio = math.exp(self.py_random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        across = min(max(math.sqrt(area * ratio), area), 1.0)  # both sides at most 1, their product the area
        w, h = max(1, round(width * across)), max(1, round(height * area / across))
        x, y = self.py_random.randint(0, width - w), self.py_random.randint(0, height - h)
        return {"crop_coords": (x, y, x + w, y + h)}


class Transform:
    """Resize an image with its mask, cues and points to one size, with random augmentation.

    The aspect ratio is not kept; with ``augment`` the image is cropped first. Images are interpolated (by area where
    they shrink); masks and cues take the nearest value.

    Args:
        size: side of the square output in pixels.
        augment: random augmentation; None for resizing only.
        channels: C, the channels of the images.
    """

    def __init__(self, size: int, augment: Augment | None = None, channels: int = 3) -> None:
        steps: list[A.BasicTransform] = []
        how = {"mask_interpolation": _NEAREST, "area_for_downscale": "image"}
        if augment is not None and augment.crop is not None:
            steps.append(_RelativeCrop((size, size), scale=augment.crop, ratio=(3 / 4, 4 / 3), **how))
        else:
            steps.append(A.Resize(size, size, **how))
        if augment is not None and augment.flip:
            steps.append(A.HorizontalFlip(p=0.5))
        if augment is not None and augment.color > 0:
            c = augment.color
            jitter = A.ColorJitter(brightness=c, contrast=c, saturation=c, hue=c / 8, p=1.0)
            steps.append(jitter if channels == 3 else A.RandomBrightnessContrast(c, c, p=1.0))
        points = A.KeypointParams(format="xy", remove_invisible=False)
        self.pipeline = A.Compose(steps, additional_targets={"cues": "mask"}, keypoint_params=points)

    def __call__(
        self, image: np.ndarray, *, seed: int = 0, mask: np.ndarray | None = None, cues: np.ndarray | None = None,
        points: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Transform one image.

        Args:
            image: uint8 (H, W, C).
            seed: seed of all random changes. (albumentations has generators that ignore global seeds and that forked
                workers would share.)
            mask: uint8 (H, W).
            cues: uint8 label map (h, w) of any size that covers the image.
            points: float (n, 2), x and y in pixels from the upper left corner of the image.

        Returns:
            ``image`` uint8 (S, S, C), and where given ``mask``, ``cues`` uint8 (S, S) and ``points`` float32 (n, 2),
            also those that the crop leaves outside.
        """
        data = {"image": image} if mask is None else {"image": image, "mask": mask}
        if cues is not None:
            data["cues"] = resize_nearest(cues, *image.shape[:2])
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
        if points is not None:
            data["keypoints"] = np.concatenate([[(0, 0), (image.shape[1], 0)], points]).astype(np.float32)
        result: dict[str, np.ndarray] = self.pipeline(**data)
        if points is not None:
            moved = np.asarray(result.pop("keypoints"), np.float32).reshape(-1, 2)
            if moved[0, 0] > moved[1, 0]:  # mirrored: albumentations' x is that of a pixel, here it is that of an edge
                moved[:, 0] += 1
            result["points"] = moved[2:]
        return result


def resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a label map uint8 (h, w) at another size, by the value at the centre of each output position."""
    # OpenCV 4 misses columns of images that grow a hundredfold, and OpenCV 5 some centres between two pixels
    pairs = zip((height, width), labels.shape, strict=True)
    rows, columns = ((2 * np.arange(wanted) + 1) * size // (2 * wanted) for wanted, size in pairs)
    resized: np.ndarray = labels[rows].take(columns, axis=1)
    return resized
