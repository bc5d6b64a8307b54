"""Where the time of a training goes: Lightning's actions by name, step by step."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from pytorch_lightning.profilers import Profiler

NEXT = "[_TrainingEpochLoop].train_dataloader_next"


class Stopwatch(Profiler):
    """Adds up the seconds of each action within each training step, a step being all from one batch to the next.

    Attributes:
        steps: for each step the seconds by action; ``step`` is the whole of it.
    """

    latest: "Stopwatch"  # Lightning's command line makes it, out of a YAML

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._begun: dict[str, float] = {}
        self._step = 0.0
        Stopwatch.latest = self

    def start(self, action_name: str) -> None:
        """Note the time."""
        now = time.perf_counter()
        if action_name == NEXT:
            if self._step:
                self.steps.append({**self._now, "step": now - self._step})
            self._now, self._step = defaultdict(float), now
        self._begun[action_name] = now

    def stop(self, action_name: str) -> None:
        """Add what has passed."""
        self._now[action_name] += time.perf_counter() - self._begun.pop(action_name, time.perf_counter())

    def call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, as an action."""
        self.start(name)
        try:
            return function(*args, **kwargs)
        finally:
            self.stop(name)


@contextmanager
def watched(**places: tuple[Any, str]) -> Iterator[None]:
    """Count the calls of functions as actions of the stopwatch that a training makes: ``name=(owner, attribute)``."""

    def wrapper(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: Stopwatch.latest.call(name, function, *args, **kwargs)

    with ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(mock.patch.object(owner, attribute, wrapper(name, getattr(owner, attribute))))
        yield
