"""Selecting the images of a page."""

import numpy as np
import pytest

from training.reports.example_selection import Example, ExampleSelector


def example(name: str, iou: float | None) -> Example:
    labels = np.zeros((4, 6), np.uint8)
    return Example(name, np.zeros((4, 6, 3), np.uint8), labels, labels, None, iou)


def test_the_best_the_worst_and_random_images_are_selected_once():
    selector = ExampleSelector(60, 12)
    scores = np.random.default_rng(1).permutation(60) / 60
    for index, score in enumerate(scores):
        selector.offer(example(str(index), float(score)))
    best, worst, drawn = selector.sections()
    assert [r.iou for r in best.examples] == [59 / 60, 58 / 60, 57 / 60, 56 / 60]
    assert [r.iou for r in worst.examples] == [0, 1 / 60, 2 / 60, 3 / 60]
    assert len(drawn.examples) == 4
    assert len({r.id for section in (best, worst, drawn) for r in section.examples}) == 12


@pytest.mark.parametrize(("total", "wanted"), [(4, 24), (3, 3), (5, 0), (1, 1), (7, 5)])
def test_as_many_images_as_wanted_are_selected(total, wanted):
    for iou in (0.5, None):
        selector = ExampleSelector(total, wanted)
        for index in range(total):
            selector.offer(example(str(index), iou))  # all equal
        names = [r.id for section in selector.sections() for r in section.examples]
        assert len(names) == len(set(names)) == min(total, wanted)


def test_the_draw_is_repeatable_and_not_the_first_images():
    def drawn():
        selector = ExampleSelector(100, 9)
        for index in range(100):
            selector.offer(example(str(index), None))
        return [r.id for section in selector.sections() for r in section.examples]

    assert drawn() == drawn() != [str(i) for i in range(9)]


def test_images_that_never_come_are_not_selected():
    selector = ExampleSelector(20, 12)
    for index in range(5):  # the others cannot be read
        selector.offer(example(str(index), None))
    names = {r.id for section in selector.sections() for r in section.examples}
    assert names <= {str(index) for index in range(5)}


def test_an_image_is_selected_once_where_few_images_come():
    selector = ExampleSelector(30, 12)
    for index in range(5):
        selector.offer(example(str(index), index / 5))
    names = [each.id for section in selector.sections() for each in section.examples]
    assert sorted(names) == [str(index) for index in range(5)]
