"""Initial weights of a backbone: none, a library's ImageNet weights, or a file."""

import textwrap
from pathlib import Path

import timm
import torchvision
from segmentation_models_pytorch.encoders import encoders, get_encoder
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.files import AnyPath, is_uri
from seeds.base_task import HEADER
from seeds.checkpoints import check_checkpoint, read_file

HEADS = ("classifier.", "fc.", "head", "last_linear.", "mask_token")  # of pretraining, not needed here
CLASSIFIER_PREFIX = "model.features.encoder."  # of the encoder's weights in a ClassifierTask

State = dict[str, Tensor]


def load_weights(encoder: nn.Module, weights: str, name: str) -> None:
    """Load weights into an encoder, in place.

    A vision transformer takes the files of timm, DINO, DINOv2 and CLIP; position embeddings of another grid are
    resampled.

    Args:
        encoder: an encoder of :func:`seeds.backbones.build_encoder` or a module with the same parameter names.
        weights: ``none`` keeps the random weights; ``imagenet`` downloads; else a file: a state dict with the
            library's names (torchvision's or SMP's; the ImageNet head is left out), or a checkpoint of a classifier.
        name: the backbone's name.

    Raises:
        InputError: there is no such file, it carries code, its keys or shapes are another network's, or the
            download failed.
    """
    if weights == "none":
        return
    state = imagenet_weights(name, encoder) if weights == "imagenet" else read_weights(weights)
    if isinstance(encoder, VisionTransformer):
        state = checkpoint_filter_fn(state, encoder)
    own = encoder.state_dict().keys()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(HEADS)}
    load_fitting(encoder, state, f"weights {weights} do not fit backbone {name}")


def load_fitting(network: nn.Module, state: State, message: str) -> None:
    """Load a state dict with exactly the keys and shapes of a network, or raise an InputError with that message.

    If the first convolution is of RGB images and that of the network of N channels, its weights are repeated in turn
    (red, green, blue, red …) and scaled by 3/N, or summed for one channel, as timm and segmentation_models_pytorch do.
    """
    own = network.state_dict()
    adapted = {}
    for key, value in state.items():
        shape = own[key].shape if key in own else value.shape
        first = value.ndim == 4 and value.shape[1] == 3 and shape == (len(value), shape[1], *value.shape[2:])
        adapted[key] = adapt_input_conv(shape[1], value) if first else value
    try:
        network.load_state_dict(adapted)
    except RuntimeError as error:
        _, reason, *_ = str(error).splitlines()  # the first line names the class only
        raise InputError(f"{message}: {textwrap.shorten(reason, 160)}") from error


def read_weights(path: str | AnyPath) -> State:
    """Read the encoder's state dict from a weight file or from a classifier's checkpoint.

    Raises:
        InputError: no such file, another kind of file, a file that carries code, or a checkpoint of another task.
    """
    if not is_uri(path) and not Path(str(path)).is_file():
        raise InputError(f"weights {path} is neither 'none' nor 'imagenet' nor a file")
    state = read_file(path)
    if HEADER in state:
        checkpoint, prefix = check_checkpoint(state, path, "classifier")["state_dict"], CLASSIFIER_PREFIX
        state = {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
    state = state.get("state_dict", state)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no weights: a dictionary of tensors is needed")
    return dict(state)


def imagenet_weights(name: str, encoder: nn.Module | None = None) -> State:
    """Download the library's ImageNet weights of a backbone.

    Args:
        name: the backbone's name.
        encoder: the network that takes the weights; a vision transformer gets those of timm.

    Raises:
        InputError: the library has none, or the download failed.
    """
    try:
        if isinstance(encoder, VisionTransformer):
            vit = timm.create_model(name.removeprefix("tu-"), pretrained=True, num_classes=0, global_pool="")
            return dict(vit.state_dict())
        if name.startswith("tu-") or (name in encoders and not name.startswith("vgg")):
            return dict(get_encoder(name, weights="imagenet").state_dict())
        return dict(torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True))
    except KeyError as error:
        raise InputError(f"there are no ImageNet weights of {name}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"ImageNet weights of {name} cannot be downloaded: give 'weights' a file") from error
