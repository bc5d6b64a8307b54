"""`tag2mask review`: which training images have doubtful labels or tags, the worst first."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from datamodules.base_datamodule import covered_samples, with_tags
from datamodules.errors import InputError
from datamodules.files import check_output_folder, is_uri, write_atomically, write_csv
from datamodules.near_duplicates import near_groups, read_fingerprints
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import print_message, track
from datamodules.seed_cache import SeedCache
from seeds.precision import Precision
from training.doubtful_labels import REASONS, ImageScores, review_images, score_image
from training.inference import load_trained
from training.photos import forbid_replacing
from training.reports.review_report import render_review


def review(
    checkpoint: UPath,
    *,
    output: Path,
    cues: UPath | None = None,
    root: str | None = None,
    split: str | None = None,
    num_images: int = 60,
    precision: Precision = "auto",
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> None:
    """Rank training images by how doubtful their labels and tags are, and write ``index.html`` and ``review.csv``.

    A position of an image is doubtful where the network, which may predict the image's tags only, predicts another
    class than the label it has learned from, where it predicts another class in the mirrored image, and where the dense
    CRF changes its prediction. Images are ranked by the share of these positions. Tags are doubtful where the network,
    now with all classes, is sure of a class without a tag, or does not find a tag anywhere. Images with masks among the
    annotations of the training are left out: they have been corrected. Nearly identical images are shown together.

    Args:
        checkpoint: checkpoint of a segmentation network that was trained on a seed cache.
        output: folder of the page and the table; created if necessary.
        cues: the seed cache; by default that of the training.
        root: folder of the images; by default that of the training.
        split: the images; by default the split of the training.
        num_images: images on the page with doubtful labels, and as many with doubtful tags; the table has all.
        precision: floating-point precision of the network, see `seeds.precision`.
        batch_size: images per batch; by default as in the training.
        num_workers: processes that read images; by default as in the training.

    Raises:
        InputError: the checkpoint, the cache or an image is not usable; nothing is written then.
    """
    if num_images < 1:
        raise InputError(f"num_images must be at least 1, not {num_images}")
    check_output_folder(output)  # minutes pass before the page is written
    trained = load_trained(checkpoint, precision)
    folder = cues or trained.data.get("cues")
    if folder is None:
        raise InputError(f"{checkpoint} was not trained on a seed cache: give the labels to review as --cues")
    cache = SeedCache(UPath(folder))
    data = datamodule_from_settings(
        trained.data, classes=list(trained.classes), root=root, train_split=split, batch_size=batch_size,
        num_workers=num_workers,
    )  # fmt: skip
    split = data.hparams["train_split"]
    listed = data.annotated(data.samples(split, masks=False), split)
    forbid_replacing(listed, [output / "index.html"])
    samples = with_tags(listed, "reviewed")
    corrected = [sample for sample in samples if sample.mask is not None]
    samples = covered_samples(cache, [sample for sample in samples if sample.mask is None], trained.classes)
    if not samples:
        reason = "have masks" if len(corrected) == len(listed) else "have masks or tags that are not known"
        raise InputError(f"all images of the split {split!r} {reason}: there is nothing to review")
    if corrected:
        print_message(f"images with masks are left out: {len(corrected)}")

    fingerprints, unreadable = read_fingerprints(samples, data.in_channels)
    data.unreadable.total += len(samples)
    for name, reason in unreadable.items():
        data.unreadable.add(name, reason)
    samples = [sample for sample in samples if sample.id in fingerprints]
    identical: dict[str, list[str]] = {}
    for group in near_groups(fingerprints):
        identical |= {name: [other for other in group if other != name] for name in group}
    ranked = [
        score_image(each, trained.classes, identical.get(each.sample.id, ()))
        for each in track(review_images(trained, data, samples, cache), "reviewing", len(samples))
    ]
    ranked.sort(key=lambda each: each.doubt, reverse=True)
    suspects = [each for each in ranked if each.tags_to_add or each.tags_to_remove]
    suspects.sort(key=lambda each: each.wrong_tags, reverse=True)
    sections = {"labels": with_identical(ranked, num_images), "tags": suspects[:num_images]}
    shown = {each.id for section in sections.values() for each in section}
    again = review_images(trained, data, [sample for sample in samples if sample.id in shown], cache)
    page = render_review(sections, again, trained.classes, facts=[
        ("checkpoint", checkpoint), ("labels", cache.path), ("data", f"{data.source}, split {split}"),
        ("images", f"{len(ranked)}; {len(corrected)} more have masks and are left out"),
    ])  # fmt: skip
    write_csv(output / "review.csv", review_rows(ranked))
    write_atomically(output / "index.html", page.encode())
    print_message(
        f"{len(ranked)} images, {len(suspects)} of them with doubtful tags: {output / 'index.html'}, review.csv"
    )


def with_identical(ranked: Sequence[ImageScores], count: int) -> list[ImageScores]:
    """Return the first ``count`` images, each followed by those that are nearly identical to it."""
    by_id, chosen = {each.id: each for each in ranked}, dict[str, ImageScores]()
    for each in ranked[:count]:
        for name in (each.id, *each.identical):
            if name in by_id:
                chosen.setdefault(name, by_id[name])
    return list(chosen.values())


def review_rows(ranked: Sequence[ImageScores]) -> Iterator[list[Any]]:
    """Yield the rows of ``review.csv``, all images, the most doubtful labels first."""
    yield ["id", "doubt", *REASONS, "wrong_tags", "tags_to_add", "tags_to_remove", "identical", "image"]
    for each in ranked:
        tags = [
            ";".join(f"{name} {value:.4f}" for name, value in tags.items())
            for tags in (each.tags_to_add, each.tags_to_remove)
        ]
        numbers = [f"{value:.4f}" for value in (each.doubt, *each.shares.values(), each.wrong_tags)]
        path = each.image if is_uri(each.image) else Path(each.image).absolute()  # the table may be moved
        yield [each.id, *numbers, *tags, ";".join(each.identical), path]
