"""Initial weights of a backbone: none, a library's ImageNet weights, or a file."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torchvision
from segmentation_models_pytorch.encoders import TimmUniversalEncoder, encoders, get_encoder
from timm.data.constants import (
    IMAGENET_DPN_MEAN,
    IMAGENET_DPN_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.models import PretrainedCfg, adapt_input_conv
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from datamodules.errors import InputError, first_line
from datamodules.files import AnyPath, is_uri
from datamodules.images import channel_statistics
from datamodules.progress import print_message
from seeds.base_task import SIGNATURE
from seeds.checkpoints import check_checkpoint, read_file

HEADS = ("classifier.", "fc.", "head", "last_linear.", "mask_token")  # of pretraining, not needed here
CLASSIFIER_PREFIX = "model.features.encoder."  # of the encoder's weights in a ClassifierTask

_INCEPTION = ("xception", "inceptionv4", "inceptionresnetv2", *(f"timm-tf_efficientnet_lite{n}" for n in range(5)))
SMP_STATISTICS = dict.fromkeys(_INCEPTION, (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)) | dict.fromkeys(
    ("dpn68", "dpn68b", "dpn92", "dpn98", "dpn107", "dpn131"), (IMAGENET_DPN_MEAN, IMAGENET_DPN_STD)
)
"""Mean and std of SMP's encoders that differ from ImageNet's, as timm has them for the same networks.

SMP stores its own numbers beside the weights that it downloads.
"""

State = dict[str, Tensor]


def load_weights(encoder: nn.Module, weights: str, name: str) -> None:
    """Load weights into an encoder, in place.

    A vision transformer takes the files of timm, DINO, DINOv2 and CLIP; position embeddings of another grid are
    resampled. The first layer is changed where images were normalised otherwise than by ImageNet's mean and std, so
    that images normalised by these have the features that the published network computes with its own.

    Args:
        encoder: an encoder of `seeds.backbones.build_backbone` or a module with the same parameter names.
        weights: ``none`` keeps the random weights; ``imagenet`` downloads; else a file: a state dict with the
            library's names (torchvision's, timm's or SMP's, also of a whole segmentation network of SMP; layers behind
            the last stage are left out), or a checkpoint of a classifier.
        name: the backbone's name.

    Raises:
        InputError: there is no such file, it carries code, its keys or shapes are another network's, or the
            download failed.
    """
    if weights == "none":
        return
    state, published = (imagenet_weights(name, encoder), True) if weights == "imagenet" else read_weights(weights)
    load_state(encoder, state, weights, name, published=published)


def load_state(encoder: nn.Module, state: State, weights: str, name: str, *, published: bool) -> None:
    """Load a state dict into an encoder, in place, as `load_weights` does with that of a file.

    Args:
        encoder: as for `load_weights`.
        state: the weights.
        weights: where they come from, as for `load_weights`.
        name: the backbone's name.
        published: whether they are a library's, and not those of a classifier's checkpoint.

    Raises:
        InputError: keys or shapes are another network's.
    """
    for prefix in ("module.", "encoder."):  # of DistributedDataParallel, and of SMP's segmentation networks
        if not any(key.startswith(prefix) for key in encoder.state_dict()):
            below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            state = below or state
    if isinstance(encoder, VisionTransformer):
        try:
            state = checkpoint_filter_fn(state, encoder)
        except (RuntimeError, LookupError, AssertionError) as error:  # position embeddings of no square grid, ...
            raise InputError(f"weights {weights} do not fit backbone {name}: {first_line(error)}") from error
    if isinstance(encoder, TimmUniversalEncoder):  # SMP wraps timm's network, without the layers behind the last stage
        names = {key.removeprefix("model."): value for key, value in state.items()}
        modules = dict(encoder.model.named_children())
        state = {f"model.{key}": value for key, value in names.items() if key.partition(".")[0] in modules}
    if published:
        adapt_normalization(encoder, state, *published_statistics(name, is_file=weights != "imagenet"))
    own = encoder.state_dict().keys()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(HEADS)}
    load_fitting(encoder, state, f"weights {weights} do not fit backbone {name}")


def timm_config(name: str) -> PretrainedCfg | None:
    """Return what timm knows of a backbone's published weights, with or without a tag; None if it has none."""
    try:
        return timm.get_pretrained_cfg(name.removeprefix("tu-"))
    except RuntimeError:  # no such tag
        return None


def published_statistics(name: str, *, is_file: bool) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and std by which the images of a backbone's published weights are normalised.

    For timm, a name without a tag, such as ``tu-vit_small_patch16_224``, stands for the weights that it downloads by
    default.

    Args:
        name: the backbone's name.
        is_file: whether the weights are a file, which may be of any tag.

    Raises:
        InputError: the name has no tag, and the statistics of a file depend on it.
    """
    if not name.startswith(("tu-", "vit_")):
        if name in encoders or name not in torchvision.models.list_models():
            return SMP_STATISTICS.get(name) or channel_statistics(3)
        transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return transforms.mean, transforms.std
    model = name.removeprefix("tu-")
    tags = [model] if "." in model or not is_file else timm.list_pretrained(f"{model}.*") or [model]
    configs = [config for tag in tags if (config := timm_config(tag)) is not None]
    known = list(dict.fromkeys((config.mean, config.std) for config in configs))
    if len(known) > 1:
        some = ", ".join(f"tu-{tag}" for tag in tags[:12])
        raise InputError(f"the mean and std of images depend on who trained {name}: name the weights, as in {some}")
    notes = [note for config in configs for note in config.notes or ()]
    if "quickgelu" not in name and any("QuickGELU" in note for note in notes):
        better = name.replace("_clip_", "_clip_quickgelu_")
        print_message(f"{name} computes GELU, and its weights were trained with QuickGELU: choose {better}")
    return known[0] if known else channel_statistics(3)


def adapt_normalization(encoder: nn.Module, state: State, mean: Sequence[float], std: Sequence[float]) -> None:
    """Change the first layer of published weights, in place, to images that are normalised by ImageNet's mean and std.

    The output is that of the published network for its own normalisation, except where a window of the first
    convolution contains padding: zero is another colour there.

    Args:
        encoder: the network, whose first convolution has a bias or is followed by position embeddings or a batch norm;
            of other networks only a message is printed.
        state: its weights; nothing changes where the first convolution is missing or not of three channels.
        mean: mean of each channel with which the weights were trained, of values in [0, 1].
        std: standard deviation of each channel.
    """
    convolution, layer = next(each for each in encoder.named_modules() if isinstance(each[1], nn.Conv2d))
    weight = state.get(f"{convolution}.weight")
    if weight is None or weight.shape[1] != 3:
        return
    if (tuple(mean), tuple(std)) == tuple(map(tuple, channel_statistics(3))):
        return
    own_mean, own_std = (torch.tensor(values) for values in channel_statistics(3))
    scale, shift = own_std / torch.tensor(std), (own_mean - torch.tensor(mean)) / torch.tensor(std)
    moved = (weight * shift[:, None, None]).sum(dim=(1, 2, 3))
    norm = next((each for each, module in encoder.named_modules() if isinstance(module, nn.BatchNorm2d)), "")
    key, sign = (f"{convolution}.bias", 1) if layer.bias is not None else (f"{norm}.running_mean", -1)
    if layer.bias is None and isinstance(encoder, VisionTransformer):  # CLIP's: position embeddings are added next
        key, sign = "pos_embed", 1
        is_patch = torch.arange(state[key].shape[1]) >= (0 if encoder.no_embed_class else encoder.num_prefix_tokens)
        moved = is_patch[:, None] * moved
    if key not in state:
        print_message(
            f"these weights were trained with mean {tuple(mean)} and std {tuple(std)} of images, not ImageNet's"
        )
        return
    state[f"{convolution}.weight"] = weight * scale[:, None, None]
    state[key] = state[key] + sign * moved


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


def read_weights(path: str | AnyPath) -> tuple[State, bool]:
    """Read the encoder's state dict from a weight file or from a classifier's checkpoint.

    Returns:
        The state dict, and whether it is that of a weight file.

    Raises:
        InputError: no such file, another kind of file, a file that carries code, or a checkpoint of another task.
    """
    if not is_uri(path) and not Path(str(path)).is_file():
        raise InputError(f"weights {path} is neither 'none' nor 'imagenet' nor a file")
    state = read_file(path)
    published = SIGNATURE not in state
    if not published:
        checkpoint, prefix = check_checkpoint(state, path, "classifier")["state_dict"], CLASSIFIER_PREFIX
        state = {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
    state = state.get("state_dict", state)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no weights: a dictionary of tensors is needed")
    return dict(state), published


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
    except Exception as error:  # errors of HTTP have no common class
        problem = f"ImageNet weights of {name} cannot be downloaded ({first_line(error)})"
        raise InputError(f"{problem}: give 'weights' a file") from error
