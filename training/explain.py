"""`tag2mask explain`: where a classifier looks, as a figure of each photo or as a page of evidence for one class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from datamodules.class_names import check_classes
from datamodules.errors import InputError, UnreadableError
from datamodules.files import check_output_folder, write_atomically
from datamodules.images import as_rgb, read_image
from datamodules.progress import track
from datamodules.unreadable_images import UnreadableImages
from seeds.explainer import Explainer, resized_maps
from training.image_overlays import Pixels, encode_image, figure_grid, gradient_image, heat_overlay, shrink
from training.photos import forbid_replacing, photo_samples, report_skipped
from training.reports.pages import embed, render

MIN_PROBABILITY = 0.5  # of the classes in a figure
_LONGEST = 300  # pixels of an image's longer side in figures and on the page
DEFAULT_METHODS = ("gradcam", "guided-gradcam", "counterfactual")
SIDES = {"for": "gradcam", "against": "counterfactual"}  # CAM methods of the page


def explain(
    *photos: UPath,
    checkpoint: UPath,
    output: Path,
    methods: list[str] | None = None,
    classes: list[str] | None = None,
    page: str | None = None,
    strongest: int = 12,
    layer: str | None = None,
    size: int | None = None,
) -> list[Path]:
    """Write a figure of each photo, classes by CAM methods, as ``<photo>.png``; or one page of evidence for a class.

    Args:
        photos: images, or folders of images.
        checkpoint: checkpoint of a classifier.
        output: folder for the figures; created if necessary.
        methods: CAM methods: gradcam, cam, counterfactual, gradcam++, layercam, hirescam, guided-backprop,
            deconvolution, guided-gradcam, deconvolution-gradcam, gradient, mwp, c-mwp, clip. Default: gradcam,
            guided-gradcam, counterfactual.
        classes: names of classes. Default: the classes with probability 0.5 or more, or the most probable class.
        page: name of a class. Write ``<class>.html`` instead of figures: the photos with the strongest evidence for the
            class (sum of the Grad-CAM map) beside those with the strongest evidence against it (counterfactual map).
        strongest: number of photos on each side of the page, at least 1.
        layer: name of the layer within the network. Default: the last feature map, of a classifier of texts that of
            CLIP-ES.
        size: side in pixels to which photos are resized. Default: the size of the classifier's validation.

    Returns:
        The files that were written.

    Raises:
        InputError: there is no photo, two photos have the same name, a method, class, layer or checkpoint does not
            exist, or the output is a folder of the photos or no folder. Also after photos were skipped as
            unreadable; ``skipped.csv`` lists them.
    """
    check_output_folder(output)
    if strongest < 1:
        raise InputError(f"strongest {strongest} must be at least 1")
    if page is not None and (classes or methods):
        given = "classes" if classes else "methods"
        raise InputError(f"page names the one class of its page, and its methods are fixed: leave {given} out")
    samples = photo_samples(photos)
    names = list(SIDES.values() if page is not None else DEFAULT_METHODS if methods is None else methods)
    if not names:
        raise InputError("no method is given")
    explainer = Explainer(checkpoint, names, layer=layer, size=size)
    wanted = (classes or []) if page is None else [page]
    if wanted:
        check_classes(wanted, explainer.classes, "of the classifier")
    labels = [explainer.classes.index(name) for name in wanted]
    targets = [output / f"{sample.id}.png" for sample in samples]
    if page is not None:
        targets = [output / f"{page.replace('/', '_')}.html"]
    forbid_replacing(samples, targets)
    skipped, evidence, total = UnreadableImages(1.0), {side: list[dict[str, Any]]() for side in SIDES}, 0
    for number, sample in enumerate(track(samples, "explaining")):
        try:
            image, name = read_image(sample.image, explainer.in_channels), Path(sample.image).name
        except UnreadableError as error:
            skipped.add(sample.id, str(error))
            continue
        if page is None:
            figure = explain_image(explainer, image, name, labels)
            write_atomically(targets[number], encode_image(figure, "png"))
        else:
            total += 1
            for each in find_evidence(explainer, image, name, labels[0]):
                found = evidence[each["kind"]]
                found.append(each)
                found.sort(key=lambda each: -each["strength"])
                del found[strongest:]
    if total:
        pairs, facts = list(zip(*evidence.values(), strict=True)), [("checkpoint", checkpoint)]
        content = render("evidence.html", label=page, pairs=pairs, total=total, facts=facts)
        write_atomically(targets[0], content.encode())
    report_skipped(output, skipped.problems(samples))
    return targets


def explain_image(explainer: Explainer, image: Pixels, title: str, labels: Sequence[int]) -> Pixels:
    """Return the figure of an image uint8 (H, W, C): a row for each class with its score, a column for each method.

    Args:
        explainer: a classifier with its CAM methods.
        image: uint8 (H, W, C).
        title: line above the figure.
        labels: indices 0..C-1 of the classes. If empty, the classes with probability 0.5 or more, or the most probable.

    Returns:
        uint8 (H', W', 3).
    """
    network_input, small = explainer.preprocess(image), shrink(as_rgb(image), _LONGEST)
    height, width = small.shape[:2]
    scores = explainer.scores(network_input[None])[0]
    probabilities = scores.sigmoid()
    if not labels:
        ranked = scores.argsort(descending=True).tolist()
        labels = [c for c in ranked if probabilities[c] >= MIN_PROBABILITY] or ranked[:1]
    columns = []
    for method in explainer.methods:
        maps = explainer.maps(method, network_input, labels)
        if maps.dim() == 4:  # (k, C, S, S): signed gradients of the pixels
            columns.append([gradient_image(each.numpy(), height, width) for each in maps])
        else:
            columns.append([heat_overlay(small, cam) for cam in resized_maps(maps, (height, width))])
    captions = [f"{explainer.classes[c]}\np {probabilities[c]:.2f}\nscore {scores[c]:+.1f}" for c in labels]
    images = [[small, *row] for row in zip(*columns, strict=True)]
    return figure_grid(["photo", *explainer.methods], captions, images, title)


def find_evidence(explainer: Explainer, image: Pixels, name: str, label: int) -> list[dict[str, Any]]:
    """Return the evidence for and against the class of index ``label`` in an image uint8 (H, W, C).

    A classifier of ``tag2mask fit`` ends in average pooling and a linear layer, so the score of the class is the
    evidence for it minus the evidence against it plus the bias. A classifier of texts ends otherwise.

    Returns:
        For each side ``name``, ``kind`` (``for`` or ``against``), ``strength`` (sum of the map), ``probability`` of the
        class, and ``image``, the photo under the map.
    """
    network_input, small = explainer.preprocess(image), shrink(as_rgb(image), _LONGEST)
    probability = float(explainer.scores(network_input[None])[0, label].sigmoid())
    found = []
    for side, method in SIDES.items():
        maps = explainer.maps(method, network_input, [label])
        strength, cam = float(maps.sum()), resized_maps(maps, small.shape[:2])[0]
        shown = embed(heat_overlay(small, cam), f"{name}: evidence {side} {explainer.classes[label]}")
        found.append({"name": name, "kind": side, "strength": strength, "probability": probability, "image": shown})
    return found
