"""Weights for a backbone: none, a library's ImageNet weights, or a file."""

from pathlib import Path

import torchvision
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.checkpoints import HEADER, read_file
from seeds.vision_transformer import VisionTransformer, build_vit, fitting, is_vit

HEADS = ("classifier.", "fc.", "head.", "heads.", "last_linear.")  # ImageNet classifiers, of no use here
CLASSIFIER_PREFIX = "model.features.encoder."  # where a ClassifierTask keeps its encoder
SHOWN = 3  # names quoted in an error

State = dict[str, Tensor]


def load_weights(encoder: nn.Module, weights: str, name: str) -> None:
    """Fill an encoder with weights, in place.

    Args:
        encoder: an encoder of :func:`seeds.backbones.build_encoder` or any module with the same parameter names.
        weights: ``none`` leaves it random; ``imagenet`` downloads; else a file: a state dict with the library's
            names (torchvision's or SMP's; the ImageNet head is left out), or a checkpoint of this project's classifier.
        name: the backbone's name.

    Raises:
        InputError: there is no such file, it carries code, its keys or shapes are another network's, or the
            download failed.
    """
    if weights == "none":
        return
    state = imagenet_weights(name) if weights == "imagenet" else read_weights(weights)
    source = f"the ImageNet weights of {name}" if weights == "imagenet" else weights
    own = encoder.state_dict()
    if isinstance(encoder, VisionTransformer):
        state = fitting(state, encoder)
    state = {key: value for key, value in state.items() if key in own or not key.startswith(HEADS)}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    other = [key for key in own if key in state and state[key].shape != own[key].shape]
    for keys, what in ((missing, "lacks"), (unknown, "has unknown"), (other, "has other shapes for")):
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            raise InputError(f"{source} does not fit backbone {name}: it {what} {', '.join(keys[:SHOWN])}{more}")
    encoder.load_state_dict(state, strict=False)


def read_weights(path: str | Path) -> State:
    """The encoder's state dict in a weight file or in a checkpoint of this project's classifier.

    Raises:
        InputError: no such file, not such a file, one that carries code, or a checkpoint of another task.
    """
    if not Path(path).is_file():
        raise InputError(f"weights {path} is neither 'none' nor 'imagenet' nor a file")
    content = read_file(path)
    if HEADER in content:
        task = content[HEADER].get("task") if isinstance(content[HEADER], dict) else None
        if task != "classifier":
            raise InputError(f"{path} is a checkpoint of a {task}; weights come from a classifier or a plain file")
        state = {
            key.removeprefix(CLASSIFIER_PREFIX): value
            for key, value in content.get("state_dict", {}).items()
            if key.startswith(CLASSIFIER_PREFIX)
        }
    else:
        state = content.get("state_dict", content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no weights: a dictionary of tensors is needed")
    return state


def imagenet_weights(name: str) -> State:
    """Download the library's ImageNet weights of a backbone.

    Raises:
        InputError: the library has none, or they cannot be fetched.
    """
    try:
        if is_vit(name):
            return dict(build_vit(name, pretrained=True).state_dict())
        if name.startswith("tu-") or (name in encoders and not name.startswith("vgg")):
            encoder: nn.Module = get_encoder(name, weights="imagenet")
            return encoder.state_dict()
        return dict(torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True))
    except KeyError as error:
        raise InputError(f"there are no ImageNet weights of {name}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the ImageNet weights of {name} cannot be downloaded; without a network give 'weights' a file"
        ) from error
