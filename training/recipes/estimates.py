"""How long the stages of a recipe will take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datamodules.progress import duration
from training.recipes.recipe import Stage
from training.recipes.stages import StagePlace

__all__ = ["Estimates"]

Source = Literal["record", "recipe"]


class Estimates:
    """What is known of the stages' times before they run, and corrected while they do.

    The estimate of a stage is the time of its last run in the same output, or else the recipe's ``minutes``. It is
    multiplied by actual over estimated time of the stages that have finished since. The two sources are corrected
    apart: the recipe's minutes are of another machine, the records mostly of this one.
    """

    def __init__(self, stages: Sequence[Stage], output: Path) -> None:
        """Look up the records of the stages' last runs.

        Args:
            stages: those that are to run, or to be kept.
            output: the recipe's folder.
        """
        found = {stage.name: _estimate(stage, output) for stage in stages}
        self._estimates = {name: estimate for name, estimate in found.items() if estimate is not None}
        self._actual: dict[Source, float] = {"record": 0.0, "recipe": 0.0}  # seconds of the finished stages
        self._expected: dict[Source, float] = {"record": 0.0, "recipe": 0.0}

    def finish(self, stage: Stage, seconds: float) -> None:
        """Take into account how long a stage took from its beginning to its end."""
        if stage.name in self._estimates:
            source, expected = self._estimates[stage.name]
            self._actual[source] += seconds
            self._expected[source] += expected

    def seconds(self, stage: Stage) -> float | None:
        """The estimate of a stage; None where nothing is known."""
        if stage.name not in self._estimates:
            return None
        source, expected = self._estimates[stage.name]
        return expected * (self._actual[source] / self._expected[source] if self._expected[source] else 1.0)

    def text(self, stages: Sequence[Stage]) -> str:
        """The estimate of stages that run one after the other, in words."""
        found = [self.seconds(stage) for stage in stages]
        known = [seconds for seconds in found if seconds is not None]
        if not known:
            return "time unknown"
        unknown = f", without the {len(found) - len(known)} of unknown time" if len(known) < len(found) else ""
        return f"about {duration(sum(known))}{unknown}"


def _estimate(stage: Stage, output: Path) -> tuple[Source, float] | None:
    """A stage's time in seconds and where it is from; a run that was resumed has recorded but the rest of its time."""
    record = StagePlace(output, stage.name).record()
    if record is not None and not record.get("resumed"):
        return "record", float(record["seconds"])
    return None if stage.minutes is None else ("recipe", 60 * stage.minutes)
