"""``zero-shot``: a classifier that compares images with texts by CLIP, without training."""

import logging
import re
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError, first_line, import_extra, unknown_name
from datamodules.files import file_sha256, is_uri, new_folder, write_json
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import print_message
from seeds.classifier import ClassifierTask, TextHead
from seeds.pretrained_weights import State, load_fitting, load_state, read_weights, timm_config
from seeds.provenance import provenance

BACKGROUND_WORDS = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway",
    "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street", "valley",
    "bridge", "sign",
)  # fmt: skip
"""Background of VOC's images in CLIP-ES (Lin et al., CVPR 2023, the authors' code)."""

CLIP_FILE = "open_clip_model.safetensors"  # in timm's repositories on Hugging Face, with both networks
SIZES = {"base": "B", "large": "L", "huge": "H", "giant": "g", "gigantic": "bigG"}
# tags with "_ft" are of classifiers trained further; the others excluded have text networks of other sizes
_NAME = re.compile(r"tu-vit_([a-z]+)_patch(\d+)_clip_(quickgelu_)?(\d+)\.(?!\w*(?:_ft|worldwide|mclip))\w+")


def zero_shot(
    root: str,
    output: Path,
    *,
    weights: str = "download",
    backbone: str = "tu-vit_base_patch16_clip_quickgelu_224.openai",
    split: str | None = None,
    classes: list[str] | None = None,
    template: str = "a clean origami {}.",
    class_words: dict[str, str] | None = None,
    background_words: list[str] | None = None,
) -> None:
    """Write the checkpoint of a classifier that compares images with texts by CLIP: no training.

    The checkpoint serves like that of a trained classifier; ``seeds generate --method clip`` localizes its classes as
    CLIP-ES does. The vectors of the texts are computed once and kept in the checkpoint.

    Args:
        root: folder of the data set: one of VOC (with ``ImageSets``), one with a JSON of COCO's instances, or photos
            with a table or in folders, see `datamodules.folder.FolderDataModule`.
        output: new folder of ``last.ckpt`` and of ``provenance.json``, texts, weights and packages.
        weights: CLIP's image and text network, a file with the names of open_clip; by default the file
            open_clip_model.safetensors of timm's repository on Hugging Face is downloaded.
        backbone: timm's name of the image network, with the tag of the weights; a name with ``quickgelu`` where the
            weights were trained so, as OpenAI's.
        split: the images to localize classes in; by default the data module's ``train_split``.
        classes: the classes; by default all of the data set.
        template: the text of a class, with {} in place of its words; the default is that of CLIP-ES.
        class_words: words in place of the names of classes.
        background_words: objects and surroundings that are no class, each with a text of the same template; by default
            those of CLIP-ES for VOC, `seeds.zero_shot.BACKGROUND_WORDS`, without names of classes.

    Raises:
        InputError: the data set cannot be read, there is no such network, the file is not of this network, a name in
            ``class_words`` is no class, a class is among ``background_words``, the download failed, or ``output`` is
            not empty.
    """
    if template.count("{}") != 1:
        raise InputError(f"template {template!r} must contain {{}} once, in place of a class")
    if weights in ("none", "imagenet"):
        raise InputError(f"weights {weights} are not those of CLIP: give a file, or download")
    name, config = open_clip_name(backbone), timm_config(backbone)
    if name is None or config is None:
        known = [f"tu-{each}" for each in timm.list_pretrained("vit_*_clip_*")]
        raise unknown_name("image network of CLIP", backbone, [each for each in known if open_clip_name(each)])
    import_extra("open_clip", "clip", "zero-shot")
    data = datamodule_from_settings(None, root=root, classes=classes, train_split=split)
    if unknown := next((each for each in class_words or {} if each not in data.mask_classes), None):
        raise unknown_name("class", unknown, data.classes)
    own_words = [(class_words or {}).get(each, each) for each in data.classes]
    taken = {word.casefold() for word in (*own_words, *data.classes)}  # CLIP reads texts in lower case
    if background_words is None:
        background_words = [word for word in BACKGROUND_WORDS if word not in taken]
    if not background_words:
        raise InputError("background_words must name something that is no class")
    if both := next((word for word in background_words if word.casefold() in taken), None):
        raise InputError(f"background_words contains {both!r}, which is a class")
    texts = [template.replace("{}", word) for word in (*own_words, *background_words)]
    if weights != "download" and not is_uri(weights) and not Path(weights).is_file():
        raise InputError(f"there is no file of weights {weights}: give another, or download")
    stride = 16 if "_patch32_" not in backbone else 32
    with new_folder(output) as folder:
        task = ClassifierTask(list(data.classes), backbone, output_stride=stride, texts=texts)
        file = weights if weights != "download" else download(str(config.hf_hub_id))
        state, _ = read_weights(file)
        state = {key.removeprefix("module."): value.float() for key, value in state.items()}
        needed = ("visual.proj", "text_projection", "token_embedding.weight", "logit_scale")
        if missing := next((key for key in needed if key not in state), None):
            raise InputError(f"{file} contains no image and text network of CLIP with open_clip's names: no {missing}")
        load_state(task.model.features.encoder, state, file, backbone, published=True)
        vectors, head = text_vectors(name, state, texts, file), task.model.head
        assert isinstance(head, TextHead)
        if state["visual.proj"].T.shape != head.projection.weight.shape or vectors.shape != head.texts.shape:
            raise InputError(f"{file} is not of {backbone}: its texts have {vectors.shape[1]} dimensions")
        head.projection.weight.data = state["visual.proj"].T.contiguous()
        head.texts.data = vectors * state["logit_scale"].exp()
        record = {"weights": {"path": file, "sha256": file_sha256(file)}, "texts": texts}
        write_json(folder / "provenance.json", provenance("open_clip_torch") | record)
        content = {
            "state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), "epoch": 0, "global_step": 0,
            "datamodule_hyper_parameters": data.settings, "pytorch-lightning_version": version("pytorch-lightning"),
        }  # fmt: skip
        task.on_save_checkpoint(content)
        torch.save(content, folder / "last.ckpt")
    count = f"{len(data.classes)} classes and {len(background_words)} texts of the background"
    print_message(f"{output / 'last.ckpt'}: {count}")


def open_clip_name(backbone: str) -> str | None:
    """Return open_clip's name of timm's image network of CLIP, such as ViT-B-16-quickgelu; None for others."""
    match = _NAME.fullmatch(backbone)
    if match is None or match[1] not in SIZES:
        return None
    size, patch, quickgelu, side = match.groups()
    return f"ViT-{SIZES[size]}-{patch}" + (f"-{side}" if side != "224" else "") + ("-quickgelu" if quickgelu else "")


def download(repository: str) -> str:
    """Download CLIP's weights from Hugging Face, or find them in its cache; return the file's path.

    Raises:
        InputError: the download failed.
    """
    try:
        return hf_hub_download(repository, CLIP_FILE)
    except Exception as error:  # errors of HTTP have no common class
        problem = f"cannot be downloaded ({first_line(error)})"
        raise InputError(f"{CLIP_FILE} of {repository} {problem}: give 'weights' a file") from error


def text_vectors(name: str, state: State, texts: list[str], file: str) -> Tensor:
    """Return the vectors (N, E) of N texts by CLIP's text network, float32, of length 1.

    Args:
        name: open_clip's name of the network.
        state: its weights.
        texts: the texts.
        file: the file of the weights, for messages.

    Raises:
        InputError: the weights are those of another network.
    """
    import open_clip

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns that no weights are loaded yet
    try:
        network = open_clip.create_model(name, load_weights=False)
    finally:
        logging.root.setLevel(level)
    load_fitting(network, state, f"{file} is not of open_clip's {name}")
    with torch.no_grad():
        vectors: Tensor = functional.normalize(network.eval().encode_text(open_clip.get_tokenizer(name)(texts)), dim=1)
    return vectors
