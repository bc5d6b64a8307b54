"""Freed memory is used again instead of being mapped anew."""

import os
import platform
import subprocess
import sys

import pytest

from training.cli import main

CODE = """
import resource, torch
from training.memory_allocator import keep_freed_memory
keep_freed_memory()
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def twenty_blocks():
    before = faults()
    for _ in range(20):
        torch.ones(16 << 20)
    return faults() - before
twenty_blocks()
print(twenty_blocks())
"""


def faults(**environment):
    """Return the page faults of a process for twenty blocks of 64 MB, after twenty others."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_blocks_are_used_again():
    used_again = faults()
    for settings in ({"MALLOC_PERTURB_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}):
        left_alone = faults(**settings)  # the user has settings of his own
        assert left_alone > 0
        assert used_again < left_alone / 10


def test_commands_begin_with_it(monkeypatch):
    called = []
    monkeypatch.setattr("training.cli.keep_freed_memory", lambda: called.append(1))
    assert main(["seeds", "info", "--help"]) == 0
    assert called == [1]
