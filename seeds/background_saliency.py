"""Background saliency, from which SEC makes background cues: low values are background.

Gradient saliency (Simonyan et al. 2013) as the SEC authors use it: the channel maximum of
|d(sum of class scores)/d(conv4 activation)|, smoothed by a 3x3 median.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.activations import gradient, record_activations
from seeds.cam_methods.targets import select_scores

NOISE_SIZE = (224, 224)  # height and width of the image of noise: patches of 14 and of 16 divide it


def background_saliency(model: nn.Module, layer: str | nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return saliency float32 (B, h, w) on the layer's grid, not normalised; low values are background.

    The model runs in eval mode and is afterwards exactly as it was; see `seeds.activations.record_activations`.

    Args:
        model: takes images (B, in_channels, H, W), gives scores (B, C).
        layer: a submodule's name or the submodule itself; its output is a map, see `seeds.activations.as_map`.
        images: (B, in_channels, H, W).
        labels: (B, C), not 0 for the classes whose scores are summed; all of them for an image without any.

    Raises:
        InputError: no such layer, a layer that gives no map or on which no score depends, or a wrong shape.
    """
    if labels.dim() != 2:
        raise InputError(f"labels must have shape ({len(images)}, C), not {tuple(labels.shape)}")
    with record_activations(model, [layer]) as activations:
        scores = select_scores(activations.run(images), labels, len(images)).scores
        return saliency_map(scores, activations[0], labels, activations.names[0])


def check_saliency(model: nn.Module, layer: str, classes: int, in_channels: int = 3) -> None:
    """Raise an InputError if saliency at a layer is the same everywhere, measured on an image of noise.

    This is the case where the layer is followed by nothing but global average pooling and a linear layer.
    """
    images = torch.rand(1, in_channels, *NOISE_SIZE, generator=torch.Generator().manual_seed(0))
    saliency = background_saliency(model, layer, images, torch.ones(1, classes))
    if saliency.numel() > 1 and saliency.amax() == saliency.amin():
        raise InputError(f"saliency at layer {layer} is the same everywhere: choose an earlier layer as saliency_layer")


def saliency_map(scores: Tensor, activation: Tensor, labels: Tensor, name: str = "") -> Tensor:
    """Return background saliency float32 (B, h, w) from a forward pass made within ``record_activations``.

    Args:
        scores: (B, C), with a graph back to ``activation``, which is used up.
        activation: (B, K, h, w).
        labels: (B, C), as for `background_saliency`.
        name: the layer's, for the error.

    Raises:
        InputError: the scores do not depend on the activation.
    """
    wanted = labels.to(scores.device) != 0
    wanted = wanted | ~wanted.any(dim=1, keepdim=True)
    (slope,) = gradient(scores, wanted[None].to(scores.dtype), activation, name)
    steepest = slope.detach().float().abs().amax(dim=1)  # (B, h, w)
    (h, w), padded = steepest.shape[-2:], functional.pad(steepest[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return torch.stack([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]).sort(dim=0).values[4]
