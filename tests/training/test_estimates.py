"""How long stages will take: what is known of them, and how those that have finished correct it."""

import json

import pytest

from training.recipes.estimates import Estimates
from training.recipes.recipe import Stage


def stage(name: str, minutes: float | None = None) -> Stage:
    return Stage(name, "fit", {}, (), minutes)


def record(output, name: str, seconds: float, *, resumed: bool = False) -> None:
    (output / "stages").mkdir(exist_ok=True)
    content = {"key": "", "dependencies": {}, "files": {}, "seconds": seconds, "figures": {}, "resumed": resumed}
    (output / f"stages/{name}.json").write_text(json.dumps(content))


def test_a_record_counts_more_than_the_recipe(tmp_path):
    """But one of a run that was resumed tells the rest of its time alone."""
    record(tmp_path, "a", 30.0)
    record(tmp_path, "b", 30.0, resumed=True)
    stages = [stage("a", 5), stage("b", 5), stage("c", 5), stage("d")]
    estimates = Estimates(stages, tmp_path)
    assert [estimates.seconds(each) for each in stages] == [30, 300, 300, None]
    assert estimates.text(stages) == "about 10 min, without the 1 of unknown time"
    assert estimates.text(stages[3:]) == "time unknown"


def test_finished_stages_correct_what_remains(tmp_path):
    """Each source of estimates by its own: the recipe's machine is another one, the records are of this one."""
    record(tmp_path, "a", 100.0)
    record(tmp_path, "b", 50.0)
    stages = [stage("a"), stage("b"), stage("c", 1), stage("d", 2), stage("e", 3), stage("f")]
    estimates = Estimates(stages, tmp_path)
    estimates.finish(stages[0], 90.0)
    assert [estimates.seconds(each) for each in stages[1:5]] == pytest.approx([45, 60, 120, 180])
    estimates.finish(stages[2], 120.0)
    estimates.finish(stages[3], 240.0)
    estimates.finish(stages[5], 500.0)  # of which nothing was expected
    assert estimates.seconds(stages[4]) == pytest.approx(360)
    assert estimates.seconds(stages[1]) == pytest.approx(45)
