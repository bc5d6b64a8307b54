"""Classes that a stage has lost, or finds nearly everywhere."""

import numpy as np
import pytest

from seeds.lost_classes import report_classes_found_everywhere, report_lost_background, report_lost_classes


def test_classes_below_one_half_are_named(capsys):
    tags = np.array([[4, 5, 0, 3], [2, 2, 0, 0]])
    report_lost_classes(tags, ["a", "b", "c", "d"], what="it finds", advice="Look.")
    assert capsys.readouterr().err == (
        "warning: it finds fewer than half of the tags of some classes: b in 2 of 5 images, d in 0 of 3 images. Look.\n"
    )


@pytest.mark.parametrize("tags", [[[4, 0], [2, 0]], [[1, 9], [1, 9]]])
def test_nothing_is_printed_where_no_class_is_lost(capsys, tags):
    report_lost_classes(np.array(tags), ["a", "b"], what="it finds", advice="Look.")
    assert capsys.readouterr().err == ""


def test_background_below_one_half_of_the_images(capsys):
    for found in (4, 3):
        report_lost_background(8, found, where="in the cues", advice="Look.")
    assert capsys.readouterr().err == "warning: in the cues there is background in 3 of 8 images. Look.\n"


def test_classes_found_without_their_tag_are_named_from_one_half_on(capsys):
    untagged = np.array([[40, 51, 0, 9], [20, 25, 0, 9]])  # c is in every image, and d is missing in too few
    report_classes_found_everywhere(untagged, ["a", "b", "c", "d"], what="it finds", advice="Look.")
    what = "it finds some classes in most images without that tag"
    assert capsys.readouterr().err == f"warning: {what}: a in 20 of 40 images. Look.\n"
