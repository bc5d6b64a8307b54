"""What several processes that train together must agree on."""

from typing import Any

from torch import Tensor, distributed

__all__ = ["everyones", "mean_over_processes"]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number over the processes, float32, without gradient; to be asked for by all of them."""
    mean = value.detach().float().clone()
    if _together():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean


def everyones(thing: Any) -> list[Any]:
    """What each process gives, in their order; to be asked for by all of them."""
    if not _together():
        return [thing]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, thing)
    return found
