"""`tag2mask explain`: where a classifier looks, as a figure of each photo or as a page of evidence for one class."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import InputError, UnreadableError
from datamodules.files import write_atomically
from datamodules.images import read_image
from datamodules.progress import print_message, track
from datamodules.sample import file_samples
from seeds.explainer import Explainer, split_names
from training.image_overlays import Image, encode_image, figure_grid, gradient_image, heat_overlay, shrink
from training.predict import check_skipped, photo_files, write_skipped
from training.reports.pages import EmbeddedImage, embed, render

__all__ = ["explain"]

MIN_PROBABILITY = 0.5  # of the classes in a figure
LONGEST = 300  # pixels of an image's longer side in figures and on the page
SIDES = {"for": "gradcam", "against": "counterfactual"}  # CAM methods of the page


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
    """Write a figure of each photo, classes by CAM methods, as ``<photo>.png``; or one page of evidence for a class.

    Args:
        photos: Photos, and folders of photos.
        checkpoint: Checkpoint of a classifier.
        output: Folder for the figures; created if necessary.
        methods: Names of CAM methods, separated by commas: gradcam, cam, counterfactual, gradcam++, layercam, hirescam,
            guided-backprop, deconvolution, guided-gradcam, deconvolution-gradcam, gradient, mwp, c-mwp.
        classes: Names of classes, separated by commas. Default: the classes with probability 0.5 or more, or the most
            probable class.
        page: Name of a class. Write ``<class>.html`` instead of figures: the photos with the strongest evidence for the
            class (sum of the Grad-CAM map) beside those with the strongest evidence against it (counterfactual map).
        strongest: Number of photos on each side of the page.
        layer: Name of the layer within the network. Default: the layer with the last map.
        size: Side in pixels to which photos are resized. Default: the size of the classifier's validation.

    Returns:
        The files that were written.

    Raises:
        InputError: There is no photo, two photos have the same name, a method, class, layer or checkpoint does not
            exist, or a figure would replace a photo. Also after photos were skipped as unreadable; ``skipped.csv``
            lists them.
    """
    paths = list(photo_files(photos))
    names = list(SIDES.values()) if page is not None else split_names(methods)
    if not names:
        raise InputError("no method is given")
    explainer = Explainer(checkpoint, names, layer=layer, size=size)
    samples = file_samples(paths)
    wanted = split_names(classes) if page is None else [page]
    for name in wanted:
        if name not in explainer.classes:
            raise InputError(f"the classifier has no class {name!r}; its classes are {', '.join(explainer.classes)}")
    labels = [explainer.classes.index(name) for name in wanted]
    page_file = None if page is None else output / f"{page.replace('/', '_')}.html"
    targets = [output / f"{sample.id}.png" for sample in samples] if page_file is None else [page_file]
    originals = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in originals:
            raise InputError(f"the figure {target} would replace a photo: choose another output folder")
    output.mkdir(parents=True, exist_ok=True)
    evidence, skipped = list[dict[str, Evidence]](), dict[Path, str]()
    for path in track(paths, "explaining"):
        try:
            image = read_image(path)
            if page is None:
                figure = explain_image(explainer, image, path.name, labels)
                write_atomically(output / f"{path.stem}.png", encode_image(figure, "png"))
            else:
                evidence.append(find_evidence(explainer, image, path.name, labels[0]))
        except UnreadableError as error:
            skipped[path] = str(error)
            print_message(f"skipped {path.name}: {error}")
    if page_file is not None and evidence:
        sides = [sorted((each[side] for each in evidence), key=lambda one: -one.strength)[:strongest] for side in SIDES]
        content = render(
            "evidence.html", label=page, pairs=list(zip(*sides, strict=True)), total=len(evidence),
            facts=[("checkpoint", checkpoint)],
        )  # fmt: skip
        write_atomically(page_file, content.encode())
    write_skipped(output, skipped)
    check_skipped(output, list(skipped.values()), len(paths))
    return targets


def explain_image(explainer: Explainer, image: Image, title: str, labels: Sequence[int]) -> Image:
    """Return the figure of an image uint8 (H, W, 3): a row for each class with its score, a column for each method.

    Args:
        explainer: A classifier with its CAM methods.
        image: uint8 (H, W, 3).
        title: Line above the figure.
        labels: Indices 0..C-1 of the classes. If empty, the classes with probability 0.5 or more, or the most probable.

    Returns:
        uint8 (H', W', 3).
    """
    network_input, small = explainer.preprocess(image), shrink(image, LONGEST)
    height, width = small.shape[:2]
    scores = explainer.scores(network_input[None])[0]
    probabilities = scores.sigmoid()
    if not labels:
        ranked = scores.argsort(descending=True).tolist()
        labels = [c for c in ranked if probabilities[c] >= MIN_PROBABILITY] or ranked[:1]
    columns = []
    for method in explainer.methods:
        maps = explainer.maps(method, network_input, labels)
        if maps.dim() == 4:  # (k, 3, S, S): signed gradients of the pixels
            columns.append([gradient_image(each.numpy(), height, width) for each in maps])
        else:
            cams = explainer.cams(method, network_input, labels, (height, width))
            columns.append([heat_overlay(small, cam) for cam in cams])
    captions = [f"{explainer.classes[c]}\np {probabilities[c]:.2f}\nscore {scores[c]:+.1f}" for c in labels]
    images = [[small, *row] for row in zip(*columns, strict=True)]
    return figure_grid(["photo", *explainer.methods], captions, images, title)


class Evidence(NamedTuple):
    """The evidence for or against a class in one photo.

    Attributes:
        name: Name of the photo.
        kind: ``for`` or ``against``.
        strength: Sum of the map. This project's classifiers end in average pooling and a linear layer, so the score
            of the class is the evidence for it minus the evidence against it plus the bias.
        probability: Probability of the class.
        image: The photo under the map.
    """

    name: str
    kind: str
    strength: float
    probability: float
    image: EmbeddedImage


def find_evidence(explainer: Explainer, image: Image, name: str, label: int) -> dict[str, Evidence]:
    """Return the evidence for and against the class of index ``label`` in an image uint8 (H, W, 3)."""
    network_input, small = explainer.preprocess(image), shrink(image, LONGEST)
    probability = float(explainer.scores(network_input[None])[0, label].sigmoid())
    found = {}
    for side, method in SIDES.items():
        strength = float(explainer.maps(method, network_input, [label]).sum())
        cam = explainer.cams(method, network_input, [label], (small.shape[0], small.shape[1]))[0]
        text = f"{name}: evidence {side} {explainer.classes[label]}"
        found[side] = Evidence(name, side, strength, probability, embed(heat_overlay(small, cam), text))
    return found
