"""`tag2mask check`: what is wrong with images and tags, before any training."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files import AnyPath, check_output_folder, list_folder, write_json
from datamodules.folder import FolderDataModule
from datamodules.images import image_names, list_images
from datamodules.masks import find_masks, read_class_mask, require_same_size
from datamodules.near_duplicates import Fingerprint, near_groups, read_fingerprints
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import first_few, print_message, print_result, track
from datamodules.sample import Sample, multi_hot

MIN_LEVELS = 32
"""Levels of gray between the darkest and the brightest pixel below which an image has lost most of its content."""

MIN_IMAGES = 20
"""Images of a class below which it is named; the rarest class of VOC animals has 196 in ``trainaug``."""

MAX_COOCCURRENCE = 0.9
"""Share of a class's images with another class from which Grad-CAM can hardly tell the two apart."""

SMALL_SHARE = 0.01
"""Share of the image, in half of its masks, below which a class is small: one for ``small_classes``."""

NO_CLASS = frozenset({
    "none", "nothing", "no", "na", "n/a", "nan", "null", "-", "?", "empty", "ok", "good", "negative",
    "no tag", "no class",
})  # fmt: skip
"""Names, in lower case, by which people mean that an image shows none of the classes."""

SEPARATORS = re.compile(r"\s*[&+/]\s*|\s+and\s+|\s+")
"""Between the tags of an image, where people do not write ``;``."""


class Finding(NamedTuple):
    """A problem that was found.

    Attributes:
        kind: ``shared``, ``unreadable``, ``identical``, ``composed``, ``spelling``, ``empty``, ``numbers``,
            ``untagged``, ``few``, ``everywhere``, ``together``, ``masks``, ``small`` or ``dark``.
        sentence: what was found and what to do.
        images: ids concerned, where it is about images; groups of them for ``identical``.
        classes: names concerned, where it is about classes.
    """

    kind: str
    sentence: str
    images: Sequence[str] | Sequence[Sequence[str]] = ()
    classes: Sequence[str] = ()


def check_data(
    root: str,
    *,
    split: str | None = None,
    validation: str | None = None,
    classes: list[str] | None = None,
    size: int = 320,
    cue_stride: int = 4,
    output: Path | None = None,
) -> None:
    """Look at images and tags before any training, and print what is wrong and what to do.

    Every image and mask is read once. It is reported which images cannot be read; which are nearly identical, and
    whether their tags differ; which classes have few images, are in all images, or nearly always have another class
    beside them; which names are probably no class, or one class in several spellings; which masks show no class,
    others than the tags, or only small objects; and how large an object must be in a photo to cover one position of the
    cue grid.

    Args:
        root: folder of the data set: one of VOC (with ``ImageSets``), one with a JSON of COCO's instances, or photos
            with a table or in folders, see `datamodules.folder.FolderDataModule`.
        split: the images to train on; by default the data module's ``train_split``.
        validation: the images to validate on, which should not be nearly identical to images to train on; by default
            the data module's ``val_split``, or none where that cannot be read.
        classes: the classes; by default all of the data set.
        size: side in pixels to which the training resizes images.
        cue_stride: pixels per position of the cue grid.
        output: JSON file of all findings, with all ids, and of the ids of the images to validate on.

    Raises:
        InputError: the data set cannot be read at all, or a number is not positive.
    """
    if size < 1 or cue_stride < 1:
        raise InputError(f"size {size} and cue_stride {cue_stride} must be positive")
    if output is not None:
        check_output_folder(output.parent)
    data = datamodule_from_settings(None, root=root, classes=classes, train_split=split, val_split=validation)
    split = data.hparams["train_split"]
    samples, others, shared = data.samples(split), list[Sample](), list[str]()
    ids, images = {sample.id for sample in samples}, {sample.image for sample in samples}
    if (val_split := data.hparams["val_split"]) not in (None, split):
        try:
            for each in data.samples(val_split):
                if each.image in images:
                    shared.append(each.id)
                else:  # splits in two folders may number their images alike
                    others.append(replace(each, id=f"{val_split}/{each.id}") if each.id in ids else each)
        except InputError as error:
            if validation is not None:
                raise
            print_message(f"no validation images are checked: {error}")
    everything, known = [*samples, *others], frozenset(data.classes)
    everything = [each if each.tags is None else replace(each, tags=each.tags & known) for each in everything]
    fingerprints, unreadable = read_fingerprints(everything, data.in_channels)
    by_id = {sample.id: sample for sample in everything}
    groups = [[by_id[name] for name in group] for group in near_groups(fingerprints)]
    found = [
        *(shared_images(shared) if split != "all" else ()),  # which contains val
        *unreadable_images(unreadable, len(everything)),
        *identical_images(groups, {sample.id for sample in others}),
        *name_problems(data.classes),
        *tag_problems(everything[: len(samples)], data.classes),
        *mask_problems(everything, data.mask_lut, data.classes, fingerprints),
        *(unused_masks(data.masks, data.all_ids) if isinstance(data, FolderDataModule) and data.masks else ()),
        *small_objects(fingerprints, size, cue_stride),
        *dark_images(fingerprints),
    ]
    counts = Counter(tag for sample in everything[: len(samples)] for tag in sample.tags or ())
    print_result(f"{len(samples):,} images in the split {split!r} of {data.source}, {len(data.classes)} classes:")
    print_result(", ".join(f"{name} {counts[name]:,}" for name in data.classes))
    for finding in found:
        print_result(f"- {finding.sentence}")
    if not found:
        print_result("nothing to correct was found")
    if output is not None:
        write_json(output, {
            "root": root, "split": split, "images": len(samples), "images_by_class": dict(counts),
            "validation": [sample.id for sample in others],
            "findings": [finding._asdict() for finding in found],
        })  # fmt: skip


def unreadable_images(reasons: Mapping[str, str], total: int) -> list[Finding]:
    """Return a finding about images that cannot be read, by their reasons; none where all can."""
    if not reasons:
        return []
    sentence = (
        f"{len(reasons)} of {total} images cannot be read; replace or remove them, or allow their share by the data "
        f"module's option max_unreadable: {first_few(list(reasons))}. The first: {next(iter(reasons.values()))}"
    )
    return [Finding("unreadable", sentence, list(reasons))]


def shared_images(shared: Sequence[str]) -> list[Finding]:
    """Return a finding about images that are in the training and in the validation split; none where no image is."""
    if not shared:
        return []
    sentence = f"{len(shared)} images are in the training and in the validation split, whose figures are too good: "
    return [Finding("shared", f"{sentence}remove them from one list: {first_few(shared)}", shared)]


def identical_images(groups: Sequence[Sequence[Sample]], validation: Collection[str]) -> list[Finding]:
    """Return findings about groups of nearly identical images: all, those with different tags, those in both splits.

    Args:
        groups: the groups.
        validation: ids of the images of the validation split.
    """

    def ids(group: Sequence[Sample]) -> str:
        return " = ".join(sample.id for sample in group[:3])

    def ids_and_tags(group: Sequence[Sample]) -> str:
        return ", ".join(f"{each.id} ({'; '.join(sorted(each.tags or ())) or 'no tag'})" for each in group[:3])

    differ = [group for group in groups if len({sample.tags for sample in group if sample.tags is not None}) > 1]
    both = [group for group in groups if len({sample.id in validation for sample in group}) > 1]
    same = f"{sum(map(len, groups))} images are nearly identical to another one, in {len(groups)} groups; "
    tags = f"{len(differ)} of these groups have different tags; look which are wrong"
    splits = f"{len(both)} of these groups are in the training and in the validation split, whose figures are "
    splits += "too good; score on images of other scenes (evaluate --root)"
    found = [
        (groups, f"{same}one of each group is enough: {first_few([ids(group) for group in groups])}"),
        (differ, f"{tags}: {first_few([ids_and_tags(group) for group in differ], '; ')}"),
        (both, f"{splits}: {first_few([ids(group) for group in both])}"),
    ]
    return [
        Finding("identical", sentence, [[sample.id for sample in group] for group in chosen])
        for chosen, sentence in found
        if chosen
    ]


def tag_problems(samples: Sequence[Sample], classes: Sequence[str]) -> list[Finding]:
    """Return findings about the numbers of images that classes have alone and together."""
    tagged = [sample for sample in samples if sample.tags is not None]
    if not tagged:
        return [Finding("untagged", "the tags of no image are known: a classifier needs them; give the images tags")]
    labels = multi_hot(tagged, classes) > 0  # (N, C)
    counts, found = labels.sum(axis=0), list[Finding]()
    if absent := [name for name, count in zip(classes, counts, strict=True) if not count]:
        sentence = "classes without an image in this split cannot be learned: add images of them, or leave them out by "
        found.append(Finding("few", f"{sentence}the option classes: {first_few(absent)}", classes=absent))
    if few := [name for name, count in zip(classes, counts, strict=True) if 0 < count < MIN_IMAGES]:
        words = [f"{name} ({counts[classes.index(name)]})" for name in few]
        sentence = f"classes with fewer than {MIN_IMAGES} images are hardly learned: add images of them, or leave them "
        found.append(Finding("few", f"{sentence}out by the option classes: {first_few(words)}", classes=few))
    if everywhere := [name for name, count in zip(classes, counts, strict=True) if count == len(tagged)]:
        sentence = "classes in every image cannot be localized, because nothing shows what an image without them is: "
        found.append(Finding("everywhere", f"{sentence}add images without {first_few(everywhere)}", classes=everywhere))
    together = labels.T.astype(np.float32) @ labels.astype(np.float32)  # (C, C), exact up to 2^24 images
    for row, column in np.argwhere(~np.eye(len(classes), dtype=bool)):
        both = int(together[row, column])
        if counts[row] >= MIN_IMAGES and both >= MAX_COOCCURRENCE * counts[row] and classes[column] not in everywhere:
            one, other = classes[row], classes[column]
            sentence = (
                f"{both} of {counts[row]} images of {one} show {other}, too: Grad-CAM cannot tell them apart; "
                f"add images of {one} without {other}, or make them one class"
            )
            found.append(Finding("together", sentence, classes=[one, other]))
    return found


def name_problems(classes: Sequence[str]) -> list[Finding]:
    """Return findings about names of classes that are probably no classes, or several."""
    known, found = set(classes), list[Finding]()
    separated = {name: [word for word in SEPARATORS.split(name) if word] for name in classes}
    if composed := [name for name, words in separated.items() if len(words) > 1 and known.issuperset(words)]:
        sentence = "names of classes consist of names of other classes; separate the tags of an image by ; or |: "
        found.append(Finding("composed", f"{sentence}{first_few(composed)}", classes=composed))
    spellings: dict[str, list[str]] = {}
    for name in classes:
        spellings.setdefault(name.casefold().strip("\"'. ").removesuffix("s"), []).append(name)
    for same in spellings.values():
        if len(same) > 1:
            sentence = f"{', '.join(same)} look like one class; write one of them everywhere, or choose by classes: an "
            found.append(Finding("spelling", f"{sentence}image of one counts as one without the others", classes=same))
    if empty := [name for name in classes if name.casefold().strip("\"'. ") in NO_CLASS]:
        sentence = "names of classes that mean none: leave the tags of these images empty, or choose the others by the "
        found.append(Finding("empty", f"{sentence}option classes: {first_few(empty)}", classes=empty))
    if all(re.fullmatch(r"[\d.]+", name) for name in classes):
        sentence = "all tags are numbers, which count as names, also 0; an image without a class has empty tags: "
        found.append(Finding("numbers", f"{sentence}{first_few(list(classes))}", classes=classes))
    return found


def mask_problems(
    samples: Sequence[Sample], lut: NDArray[np.uint8], classes: Sequence[str], fingerprints: Mapping[str, Fingerprint]
) -> list[Finding]:
    """Return findings about masks that cannot be read or do not fit their images or tags, and about what they show.

    Args:
        samples: samples with masks or without.
        lut: uint8 (256,), see `datamodules.class_names.mask_lut`.
        classes: the classes.
        fingerprints: of the images that can be read, by id.
    """

    def read(sample: Sample) -> dict[str, float] | str:
        try:
            mask = read_class_mask(sample.mask or "", lut)
            if image := fingerprints.get(sample.id):
                size = image.height, image.width
                require_same_size(f"mask {sample.mask}", mask.shape, f"its image {sample.image}", size)
        except InputError as error:
            return str(error)
        shares = np.bincount(mask.ravel(), minlength=256) / mask.size
        return {name: share for name, share in zip(classes, shares[1:].tolist(), strict=False) if share}

    masked = [sample for sample in samples if sample.mask is not None]
    if not masked:
        return []
    with ThreadPoolExecutor() as pool:
        contents = dict(zip(masked, track(pool.map(read, masked), "reading masks", len(masked)), strict=True))
    found = list[Finding]()
    if wrong := {sample.id: reason for sample, reason in contents.items() if isinstance(reason, str)}:
        sentence = f"{len(wrong)} of {len(masked)} masks cannot be used: {first_few(list(wrong))}. The first: "
        found.append(Finding("masks", sentence + next(iter(wrong.values())), list(wrong)))
    shown = {sample: names for sample, names in contents.items() if not isinstance(names, str)}
    if shown and not any(shown.values()):
        indices = ", ".join(f"{index} for {name}" for index, name in enumerate(classes[:3], start=1))
        sentence = f"no mask shows a class: 0 is background, 255 is not known, and objects have the index {indices}"
        found.append(Finding("masks", sentence, [sample.id for sample in shown]))
    differ = [each.id for each, names in shown.items() if each.tags is not None and not names.keys() <= each.tags]
    if differ:
        first = next(each for each in shown if each.id == differ[0])
        words = f"{first.id} has the tags {', '.join(sorted(first.tags or ())) or '(none)'}"
        sentence = (
            f"{len(differ)} of {len(masked)} masks show a class that is no tag of their image: {words}, and its mask "
            f"shows {', '.join(sorted(shown[first]))}; correct the tags, or the masks, whose indices from 1 on are "
            f"{', '.join(classes[:5])}"
        )
        found.append(Finding("masks", sentence, differ))
    shares = {name: [each[name] for each in shown.values() if name in each] for name in classes}
    small = {name: half for name, each in shares.items() if each and (half := median(each)) < SMALL_SHARE}
    if small:
        percent = [f"{name} ({100 * half:.2g} %)" for name, half in small.items()]
        sentence = "classes that cover less than 1 % of the image in half of their masks are found by small_classes "
        sentence += f"of seeds generate, a setting of photos.yaml and coco.yaml: {first_few(percent)}"
        found.append(Finding("small", sentence, classes=list(small)))
    return found


def unused_masks(folder: AnyPath, ids: Collection[str]) -> list[Finding]:
    """Return a finding about image files in a folder of masks that are not the mask of an image.

    Args:
        folder: the folder; masks may be in folders of it, as images whose folder is their tag.
        ids: the ids of all images of the data set.
    """
    folders, files = list_folder(folder)
    names = image_names(files)
    for below in (each for each in folders if not each.startswith(".")):
        names += [f"{below}/{name}" for name in list_images(folder / below)]
    used = set(filter(None, find_masks(folder, sorted(ids))))
    if not used and not names:  # masks of a kind that is not read
        names = [name for name in files if not name.startswith(".")]
    if not (unused := [name for name in names if str(folder / name) not in used]):
        return []
    problem = f"{len(unused)} of {len(names)} files in {folder} are not the mask of an image"
    return [Finding("masks", f"{problem}, first {unused[0]}: a mask has the name of its image, as {min(ids)}.png")]


def small_objects(fingerprints: Mapping[str, Fingerprint], size: int, cue_stride: int) -> list[Finding]:
    """Return a finding where a position of the cue grid covers much of a typical image; none otherwise."""
    if not fingerprints:
        return []
    side = median(max(each.height, each.width) for each in fingerprints.values())
    pixels = side * cue_stride / size
    if side <= 2 * size:
        return []
    sentence = (
        f"half of the images have a side of {side:,.0f} pixels or more, and are trained at {size}: a position of the "
        f"cue grid is {pixels:.0f} pixels of the photo, and smaller objects are lost; use a larger size and eval_size "
        f"in the YAMLs of the stages, or cut the photos"
    )
    return [Finding("small", sentence)]


def dark_images(fingerprints: Mapping[str, Fingerprint]) -> list[Finding]:
    """Return a finding where half of the images have hardly any contrast; none otherwise."""
    dark = [name for name, each in fingerprints.items() if each.levels < MIN_LEVELS]
    if not dark or 2 * len(dark) < len(fingerprints):
        return []
    sentence = (
        f"{len(dark)} of {len(fingerprints)} images have fewer than {MIN_LEVELS} levels between their darkest and "
        f"brightest pixel: {first_few(dark)}; of 16-bit PNGs the high byte is read, so scale their values to 8 bits"
    )
    return [Finding("dark", sentence, dark)]
