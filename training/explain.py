"""Why a classifier says what it says: a figure a photo, or a page of the evidence for and against a class."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError, UnreadableError
from datamodules.files import write_atomically
from datamodules.images import read_image
from datamodules.photos import file_photos
from datamodules.progress import print_message, track
from seeds.explainer import Explainer, split_names
from training.drawings import LONGEST, gradient_picture, grid, heat_picture
from training.evidence import AGAINST, FOR, evidence_page, weigh
from training.image_overlays import shrink
from training.predict import check_skipped, photo_files, write_skipped

__all__ = ["explain"]

THERE = 0.5  # probability from which on a class counts as seen

Image = NDArray[np.uint8]


def explain(
    *photos: Path,
    checkpoint: Path,
    output: Path,
    methods: str | list[str] = "gradcam,guided-gradcam,counterfactual",
    classes: str | list[str] = "",
    page: str | None = None,
    strongest: int = 12,
    layer: str | None = None,
    size: int | None = None,
) -> list[Path]:
    """Write a figure of each photo, classes by methods, as ``<photo>.png``; or a page of the evidence in all of them.

    Args:
        photos: photos, and folders of them.
        checkpoint: a classifier's.
        output: folder for the figures; made if need be.
        methods: names with commas between: gradcam, cam, counterfactual, gradcam++, layercam, hirescam,
            guided-backprop, deconvolution, guided-gradcam, deconvolution-gradcam, gradient, mwp, c-mwp.
        classes: names with commas between; those of probability 0.5 and more if not given, at least the likeliest.
        page: a class; in place of figures ``<class>.html`` is written: the photos with the strongest evidence for
            the class beside those with the strongest against it (Grad-CAM's, and its counterfactual's).
        strongest: how many photos the page shows of either kind.
        layer: the layer to ask, within the network; its last map if not given.
        size: side in pixels to which photos are warped; the classifier's if not given.

    Returns:
        The files written.

    Raises:
        InputError: no photo, two of the same name, a method, class, layer or checkpoint that does not exist, a figure
            that would replace a photo, or photos that cannot be read: they are skipped, and listed in ``skipped.csv``.
    """
    paths = list(photo_files(photos))
    chosen = [FOR, AGAINST] if page is not None else split_names(methods)
    if not chosen:
        raise InputError("no method is given")
    explainer = Explainer(checkpoint, chosen, layer=layer, size=size)
    names = file_photos(paths, explainer.classes).ids
    wanted = [class_index(explainer, name) for name in split_names(classes if page is None else [page])]
    targets = [output / f"{page}.html"] if page is not None else [output / f"{name}.png" for name in names]
    originals = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in originals:
            raise InputError(f"the figure {target} would replace a photo: choose another output folder")
    output.mkdir(parents=True, exist_ok=True)
    evidence, skipped = [], dict[Path, str]()
    for path, name in zip(track(paths, "explaining"), names, strict=True):
        try:
            if page is not None:
                evidence.append(weigh(explainer, path, wanted[0]))
            else:
                write_png(output / f"{name}.png", figure(explainer, path, wanted))
        except UnreadableError as error:
            skipped[path] = str(error)
            print_message(f"left out: {name}: {error}")
    if page is not None and evidence:
        write_atomically(targets[0], evidence_page(page, evidence, strongest, str(checkpoint)).encode())
    write_skipped(output, skipped)
    check_skipped(output, list(skipped.values()), len(paths))
    return targets


def write_png(path: Path, image: Image) -> None:
    """Write an image uint8 (H, W, 3) as PNG, whole or not at all."""
    done, data = cv2.imencode(".png", image[..., ::-1])
    if not done:
        raise InputError(f"the figure {path} cannot be written as PNG")
    write_atomically(path, data.tobytes())


def class_index(explainer: Explainer, name: str) -> int:
    """The index 0..C-1 of a class.

    Raises:
        InputError: the classifier does not know it.
    """
    if name not in explainer.classes:
        raise InputError(f"the classifier knows no class {name!r}; it knows {', '.join(explainer.classes)}")
    return explainer.classes.index(name)


def figure(explainer: Explainer, path: Path, wanted: Sequence[int]) -> Image:
    """One photo's figure, uint8 (H, W, 3): a row a class with its probability and score, a column a method."""
    image = read_image(path)
    seen = explainer.preprocess(image)
    scores = explainer.scores(seen[None])[0]
    probabilities = scores.sigmoid()
    likely = [int(c) for c in scores.argsort(descending=True)]
    shown = list(wanted) or [c for c in likely if probabilities[c] >= THERE] or likely[:1]
    small = shrink(image, LONGEST)
    by_method = [panels_of(explainer, method, seen, shown, small) for method in explainer.methods]
    rows = [[small, *panels] for panels in zip(*by_method, strict=True)]
    captions = [
        (explainer.classes[c], f"p {float(probabilities[c]):.2f}", f"score {float(scores[c]):+.1f}") for c in shown
    ]
    return grid(["photo", *explainer.methods], captions, rows, path.name)


def panels_of(explainer: Explainer, method: str, seen: Tensor, shown: Sequence[int], small: Image) -> list[Image]:
    """A method's images, uint8 (h, w, 3), of some classes."""
    height, width = small.shape[:2]
    maps = explainer.maps(method, seen, shown)
    if maps.dim() == 4:
        return [gradient_picture(each.numpy(), height, width) for each in maps]
    heats = explainer.cams(method, seen, shown, (height, width))
    return [heat_picture(small, heat) for heat in heats]
