"""Lines for the person at the terminal, or for the log."""

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console

__all__ = ["print_message"]


@rank_zero_only
def print_message(line: str) -> None:
    """Print a line on standard error, once for all processes."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)
