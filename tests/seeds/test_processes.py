"""The generator as processes: killed and resumed, two at once, one or several; always the same bytes."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from datamodules.seed_cache import SeedCache
from datamodules.seed_cache_check import verify_cache
from seeds.generate import generate_seeds
from tests.processes import child, kill, ranks
from training.cli import main

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"accelerator": "cpu", "num_workers": 0, "flip": True}


def files(path):
    """All but the manifest, which tells the day."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}


def told(path):
    return {key: value for key, value in SeedCache(path).manifest.items() if key not in ("date", "command")}


def test_killed_at_twenty_moments(checkpoint, tmp_path):
    """Each time the next run goes on where it was; the end is that of an undisturbed run."""
    generate_seeds(checkpoint, tmp_path / "whole", shard_size=1, **SETTINGS)
    start = time.perf_counter()  # in a process as those that are killed: on a busy machine they are slower
    again = child(lambda: generate_seeds(checkpoint, tmp_path / "whole", shard_size=1, **SETTINGS, overwrite=True))
    assert os.waitpid(again, 0)[1] == 0
    took = time.perf_counter() - start
    progress = set()
    for delay in np.random.default_rng(0).uniform(0, 1.1 * took, 20):
        pid = child(lambda: generate_seeds(checkpoint, tmp_path / "c", shard_size=1, **SETTINGS))
        time.sleep(delay)
        kill(pid)
        progress.add(len(list((tmp_path / "c").glob("shard-*.json"))))
        if (tmp_path / "c/manifest.json").is_file():
            generate_seeds(checkpoint, tmp_path / "c", shard_size=1, **SETTINGS)  # clears what it may have left
            assert files(tmp_path / "c") == files(tmp_path / "whole")
            for file in (tmp_path / "c").iterdir():
                file.unlink()
    generate_seeds(checkpoint, tmp_path / "c", shard_size=1, **SETTINGS)
    assert files(tmp_path / "c") == files(tmp_path / "whole")
    assert told(tmp_path / "c") == told(tmp_path / "whole")
    assert len(progress) > 1  # some had finished shards, some had none


def test_one_two_and_three_processes_write_the_same_bytes(checkpoint, tmp_path):
    def run(name, **settings):
        given = {"batch_size": 2, "shard_size": 2, "size": 128}
        generate_seeds(checkpoint, tmp_path / name, **given, **SETTINGS, **settings)

    run("1")
    for world in (2, 3):
        assert ranks(world, lambda world=world: run(str(world), devices=world)) == [0] * world
        assert files(tmp_path / str(world)) == files(tmp_path / "1")
        assert told(tmp_path / str(world)) == told(tmp_path / "1")
    assert ranks(2, lambda: run("2", devices=2)) == [0, 0]  # there already
    assert len(files(tmp_path / "1")) == 4


def test_more_processes_than_shards_and_a_failure_among_several(voc, checkpoint, tmp_path):
    def run(name, **settings):
        generate_seeds(checkpoint, tmp_path / name, devices=2, **SETTINGS, **settings)

    assert ranks(2, lambda: run("few")) == [0, 0]
    verify_cache(tmp_path / "few")
    # the second process has the broken image; the first tells it and fails, the second leaves quietly
    shutil.copytree(voc, tmp_path / "broken")
    (tmp_path / "broken/JPEGImages/p1.jpg").write_bytes((voc / "JPEGImages/p1.jpg").read_bytes()[:700])
    strict = {"root": str(tmp_path / "broken"), "shard_size": 1, "strict": True}
    assert ranks(2, lambda: run("strict", **strict)) == [1, 0]
    assert not (tmp_path / "strict/manifest.json").exists()
    assert ranks(2, lambda: run("strict", **strict | {"strict": False, "max_unreadable": 0.2})) == [0, 0]
    assert list(SeedCache(tmp_path / "strict").left_out) == ["p1"]


def command(checkpoint, output, *more):
    words = [
        "seeds",
        "generate",
        f"--checkpoint={checkpoint}",
        f"--output={output}",
        "--accelerator=cpu",
        "--precision=32-true",
        *more,
    ]
    return [*words, "--shard_size=1", "--num_workers=1", "--flip=true"]


def start(*words, **settings):
    return subprocess.Popen([sys.executable, *words], env=os.environ | {"PYTHONPATH": str(ROOT)}, **settings)


SLOWLY = """
import time
from datamodules.cache.making import Making
from training.cli import run
write = Making.write
Making.write = lambda *arguments: (write(*arguments), time.sleep(1))
run()
"""


def test_the_command_is_killed_and_resumed(checkpoint, tmp_path, capsys):
    """Others are refused while it is at work, and other settings afterwards."""
    process = start("-c", SLOWLY, *command(checkpoint, tmp_path / "c"), stdout=subprocess.DEVNULL)
    while not list((tmp_path / "c").glob("shard-*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    assert main(command(checkpoint, tmp_path / "c")) == 1
    assert "c is being made by another process" in capsys.readouterr().err
    process.kill()
    process.wait()
    assert not (tmp_path / "c/manifest.json").exists()
    assert main(command(checkpoint, tmp_path / "c", "--fg_threshold=0.3")) == 1
    assert "is being made with fg_threshold 0.2, not 0.3" in capsys.readouterr().err
    assert main(command(checkpoint, tmp_path / "c")) == 0
    assert "of 6 shards are there already, and sound" in capsys.readouterr().err
    assert main(command(checkpoint, tmp_path / "whole")) == 0
    assert files(tmp_path / "c") == files(tmp_path / "whole")
    assert main(["seeds", "verify", f"--cache={tmp_path / 'c'}"]) == 0
    assert main(["seeds", "info", f"--cache={tmp_path / 'c'}"]) == 0
    assert '"fg_threshold": 0.2' in capsys.readouterr().out


def test_the_command_starts_its_other_processes(checkpoint, tmp_path):
    """As a module, with two processes."""
    words = command(checkpoint, tmp_path / "two", "--devices=2")
    process = start("-m", "training.cli", *words, stderr=subprocess.PIPE, text=True)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert err.count("seeds, process 1 of 2: 0/") == 1
    assert "process 2 of 2" not in err
    assert main(command(checkpoint, tmp_path / "one")) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")
