"""The generator as processes: killed and resumed, two at once, one or several; always the same bytes."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import Identity
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import list_folder, read_bytes, write_atomically
from datamodules.sample_blocks import consecutive_blocks
from datamodules.seed_cache.cache import SeedCache, verify_cache
from datamodules.seed_cache.writer import SeedCacheWriter
from datamodules.voc import VOCDataModule
from seeds.cache_job import SeedModule, ShardWriter
from seeds.distributed import gather_objects, wait_for_slower_processes
from seeds.generate_seeds import CamModule
from seeds.job_options import JobOptions
from tests.processes import child, free_port, kill, ranks
from tests.seed_caches import generate
from tests.seeds.conftest import data_of
from tests.tars import voc_tars
from training.cli import main

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"accelerator": "cpu", "num_workers": 0, "flip": True}


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith(".part")}


def test_killed_at_twenty_moments(checkpoint, tmp_path):
    """Each run resumes the one before, and the result equals that of an undisturbed run."""
    generate(checkpoint, tmp_path / "whole", shard_size=1, **SETTINGS)
    start = time.perf_counter()  # in a process as those that are killed: on a busy machine they are slower
    again = child(lambda: generate(checkpoint, tmp_path / "again", shard_size=1, **SETTINGS))
    assert os.waitpid(again, 0)[1] == 0
    took = time.perf_counter() - start
    progress = set()
    for delay in np.random.default_rng(0).uniform(0, 1.1 * took, 20):
        pid = child(lambda: generate(checkpoint, tmp_path / "c", shard_size=1, **SETTINGS))
        time.sleep(delay)
        kill(pid)
        progress.add(len(list((tmp_path / "c").glob("shard-*"))))
        if len(list((tmp_path / "c").glob("shard-*"))) == 6:
            generate(checkpoint, tmp_path / "c", shard_size=1, **SETTINGS)
            assert files(tmp_path / "c") == files(tmp_path / "whole")
            for file in (tmp_path / "c").iterdir():
                file.unlink()
    generate(checkpoint, tmp_path / "c", shard_size=1, **SETTINGS)
    assert files(tmp_path / "c") == files(tmp_path / "whole")
    assert len(progress) > 1  # some had finished shards, some had none


def test_one_two_and_three_processes_write_the_same_bytes(checkpoint, tmp_path):
    def run(name, **settings):
        given = {"batch_size": 2, "shard_size": 2, "size": 128}
        generate(checkpoint, tmp_path / name, **given, **SETTINGS, **settings)

    run("1")
    for world in (2, 3):
        assert ranks(world, lambda world=world: run(str(world), devices=world)) == [0] * world
        assert files(tmp_path / str(world)) == files(tmp_path / "1")
    assert ranks(2, lambda: run("2", devices=2)) == [0, 0]  # there already
    assert len(files(tmp_path / "1")) == 3


def test_more_processes_than_shards_and_a_failure_among_several(voc, checkpoint, tmp_path):
    def run(name, **settings):
        generate(checkpoint, tmp_path / name, devices=2, **SETTINGS, **settings)

    assert ranks(2, lambda: run("few")) == [0, 0]
    verify_cache(tmp_path / "few")
    # the second process has the broken image; the first tells it and fails, the second leaves quietly
    shutil.copytree(voc, tmp_path / "broken")
    (tmp_path / "broken/JPEGImages/p1.jpg").write_bytes((voc / "JPEGImages/p1.jpg").read_bytes()[:700])
    strict = {"root": str(tmp_path / "broken"), "shard_size": 1, "strict": True}
    assert ranks(2, lambda: run("strict", **strict)) == [1, 0]
    with pytest.raises(InputError, match="lacks"):
        SeedCache(tmp_path / "strict")
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


def run_slowly(words):
    """Run a command that sleeps for a second after each shard."""
    write = SeedCacheWriter.write
    SeedCacheWriter.write = lambda *arguments: (write(*arguments), time.sleep(1))
    sys.exit(main(words))


def test_the_command_is_killed_and_resumed(checkpoint, tmp_path, capsys):
    """Other settings are refused, while it runs and afterwards."""
    process = child(lambda: run_slowly(command(checkpoint, tmp_path / "c")))
    while not list((tmp_path / "c").glob("shard-*")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0)  # it runs
        time.sleep(0.01)
    for running in (True, False):
        assert main(command(checkpoint, tmp_path / "c", "--fg_threshold=0.3")) == 1
        assert "c exists already, made with fg_threshold 0.2, not 0.3" in capsys.readouterr().err
        if running:
            kill(process)
    with pytest.raises(InputError, match="lacks"):
        SeedCache(tmp_path / "c")
    assert main(command(checkpoint, tmp_path / "c")) == 0
    assert "of 6 shards are there already, and sound" in capsys.readouterr().err
    assert main(command(checkpoint, tmp_path / "whole")) == 0
    assert files(tmp_path / "c") == files(tmp_path / "whole")
    assert main(["seeds", "verify", f"--cache={tmp_path / 'c'}"]) == 0
    assert main(["seeds", "info", f"--cache={tmp_path / 'c'}"]) == 0
    assert '"fg_threshold": 0.2' in capsys.readouterr().out


def test_two_jobs_at_once_and_partitions_write_the_same_bytes(checkpoint, tmp_path, capsys):
    """Nobody waits: two jobs in one folder write the same shards, partitions others."""
    generate(checkpoint, tmp_path / "whole", shard_size=1, **SETTINGS)
    pids = [child(lambda: generate(checkpoint, tmp_path / "twice", shard_size=1, **SETTINGS)) for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert files(tmp_path / "twice") == files(tmp_path / "whole")
    for number in (2, 0, 1):
        generate(checkpoint, tmp_path / "parts", shard_size=1, partition=f"{number}/3", **SETTINGS)
        missing = {2: 4, 0: 2}.get(number)
        assert (f"{missing} of 6 shards are still missing" in capsys.readouterr().err) == bool(missing)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    for partition in ("3/3", "4/3", "0/0", "1", "-1/2", "a/b"):
        with pytest.raises(InputError, match="partition must be i/N with i from 0 to N-1"):
            generate(checkpoint, tmp_path / "none", partition=partition)


def test_batches_follow_from_the_shard_alone(voc, tmp_path):
    """No batch has images of two shards, so that every bit is the same for any number of processes."""
    data = data_of(voc)
    samples = data.samples("train")
    blocks = consecutive_blocks(samples, 4)
    ids = [[sample.id for sample in blocks.read(number)] for number in (0, 1)]

    def batches(rank, world, excluded):
        cache = SeedCacheWriter(tmp_path / "c", data.classes, {"batch_size": 3}, ids, left_out=excluded)
        writer = ShardWriter(cache, blocks, JobOptions(shard_size=4))
        strategy = SimpleNamespace(broadcast=lambda value: ("", [0, 1]) if rank else value)
        trainer = SimpleNamespace(is_global_zero=rank == 0, strategy=strategy, global_rank=rank, world_size=world)
        module = SeedModule(Identity(), {"size": 64, "cue_stride": 8})
        writer.setup(trainer, module, "predict")
        writer.close(module, finished=True)
        ((found, indices),) = writer.rounds()
        return [[found[index].id for index in batch] for batch in indices]

    assert batches(0, 1, {}) == [["p0", "p1", "p2"], ["p3"], ["p4", "p5"]]
    assert (batches(0, 2, {}), batches(1, 2, {})) == ([["p0", "p1", "p2"], ["p3"]], [["p4", "p5"]])
    assert batches(0, 1, {"p1": "it is torn", "p3": "it is torn"}) == [["p0", "p2"], [], ["p4", "p5"]]


@pytest.mark.parametrize(("size", "stride", "side"), [(320, 8, 40), (321, 8, 41), (100, 3, 34), (4, 8, 1)])
def test_grids_by_hand(size, stride, side):
    assert SeedModule(Identity(), {"size": size, "cue_stride": stride}).grid == (side, side)


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


def test_the_share_of_unreadable_images_is_that_of_a_partition(voc, checkpoint, tmp_path):
    """One of the two images of a partition is half of them, although it is a sixth of all."""
    shutil.copytree(voc, tmp_path / "broken")
    (tmp_path / "broken/JPEGImages/p1.jpg").write_bytes((voc / "JPEGImages/p1.jpg").read_bytes()[:700])
    run = partial(generate, checkpoint, tmp_path / "c", root=str(tmp_path / "broken"), shard_size=1, **SETTINGS)
    (part,) = (part for part in range(3) if "p1" in [each.id for each in data_of(voc).samples("train")][part::3])
    with pytest.raises(InputError, match=r"1 of 2 images cannot be read, and max_unreadable allows a share of 0\.2"):
        run(partition=f"{part}/3", max_unreadable=0.2)
    for part in range(3):
        run(partition=f"{part}/3", max_unreadable=0.5)
    assert list(SeedCache(tmp_path / "c").left_out) == ["p1"]


def test_a_partition_for_each_process_of_torchrun(checkpoint, tmp_path):
    """The processes do not wait for each other; the first of them prints no more than the others."""
    assert main(command(checkpoint, tmp_path / "whole")) == 0
    words = command(checkpoint, tmp_path / "parts", "--partition=$RANK/$WORLD_SIZE")
    launched = " ".join([f'"{sys.executable}" -m training.cli', *words])
    process = start(
        *("-m", "torch.distributed.run", "--no-python", "--nproc_per_node=2", "--master_port", str(free_port())),
        *("bash", "-c", launched), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert err.count("seeds, partition 0/2: 0/3 images") == err.count("seeds, partition 1/2: 0/3 images") == 1
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_partition_for_each_task_of_slurm(checkpoint, tmp_path, monkeypatch):
    """As far as SLURM's variables tell: neither task waits for the other."""
    generate(checkpoint, tmp_path / "whole", shard_size=1, **SETTINGS)
    step = {"STEP_ID": 0, "STEP_NUM_TASKS": 2, "NTASKS": 2, "JOB_ID": 1, "JOB_NAME": "seeds", "NODEID": 0}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for task in (1, 0):
        monkeypatch.setenv("SLURM_PROCID", str(task))
        monkeypatch.setenv("SLURM_LOCALID", str(task))
        generate(checkpoint, tmp_path / "parts", shard_size=1, partition=f"{task}/2", **SETTINGS)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_tars_by_partitions(voc, checkpoint, tmp_path, capfd):
    """A shard for each tar file; a job opens its own alone, and the bytes are those of one process."""
    samples = data_of(voc).samples("train")
    folder = tmp_path / "tars"
    folder.mkdir()
    tars = voc_tars(voc, samples, 2)
    for name, content in tars.items():
        (folder / name).write_bytes(content)
    generate(checkpoint, tmp_path / "whole", images=f"{folder}/*.tar", **SETTINGS)
    whole, cache = files(tmp_path / "whole"), SeedCache(tmp_path / "whole")
    assert sorted(whole) == [f"train-{number:03d}.safetensors" for number in range(3)]
    generate(checkpoint, tmp_path / "voc", shard_size=2, **SETTINGS)
    same = SeedCache(tmp_path / "voc")
    assert cache.ids == same.ids
    for name in cache.ids:
        assert (cache.cues(name) == same.cues(name)).all()
        assert (cache.maps(name)[1] == same.maps(name)[1]).all()
    for part in (2, 0, 1):
        for name, content in tars.items():
            (folder / name).write_bytes(content if name == f"train-{part:03d}.tar" else bytes(len(content)))
        pattern = f"{folder}/train-{{000..002}}.tar"
        for _ in range(2):  # the second time nothing is opened
            generate(checkpoint, tmp_path / "parts", images=pattern, partition=f"{part}/3", **SETTINGS)
            printed = capfd.readouterr().err
            (folder / f"train-{part:03d}.tar").write_bytes(bytes(len(tars[f"train-{part:03d}.tar"])))
        assert f"warning: 1 shards are older than their tar files: train-{part:03d}.safetensors; remove" in printed
    parts = SeedCache(tmp_path / "parts")
    assert parts.fingerprint == cache.fingerprint
    for name, content in tars.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"whole exists already, made with (files_sha256 \(the list of tar f|shards)"):
        generate(checkpoint, tmp_path / "whole", images=f"{folder}/train-{{000..001}}.tar", **SETTINGS)
    (folder / "train-001.tar").write_bytes(tars["train-001.tar"][:3000])
    with pytest.raises(InputError, match=r"train-001\.tar is truncated in p"):
        generate(checkpoint, tmp_path / "torn", images=str(folder), **SETTINGS)
    assert sorted(files(tmp_path / "torn")) == ["train-000.safetensors"]


def test_images_that_are_newer_than_their_shard_are_reported(voc, checkpoint, tmp_path, capfd):
    root = shutil.copytree(voc, tmp_path / "voc")
    run = partial(generate, checkpoint, tmp_path / "cache", root=str(root), shard_size=2, **SETTINGS)
    run()
    run()
    assert "older than" not in capfd.readouterr().err
    cache = SeedCache(tmp_path / "cache")
    os.utime(root / f"JPEGImages/{cache.ids[3]}.jpg", (2e9, 2e9))
    run()
    words = "warning: 1 shards are older than some of their images: shard-00001.safetensors; remove those whose images"
    assert words in capfd.readouterr().err


def test_two_processes_share_tars(voc, checkpoint, tmp_path, capfd):
    """Images count, and not the root and split of a configuration; a partition may be empty."""
    for name, content in voc_tars(voc, data_of(voc).samples("train"), 2).items():
        (tmp_path / name).write_bytes(content)
    generate(checkpoint, tmp_path / "one", images=str(tmp_path), root="none", split="none", **SETTINGS)
    generate(checkpoint, tmp_path / "one", images=str(tmp_path), partition="3/4", **SETTINGS)
    assert "partition 3/4 is empty: there are 3 shards" in capfd.readouterr().err
    run = partial(generate, checkpoint, images=str(tmp_path), devices=2, **SETTINGS)
    assert ranks(2, lambda: run(tmp_path / "two")) == [0, 0]
    assert files(tmp_path / "two") == files(tmp_path / "one")
    (tmp_path / "train-001.tar").write_bytes(b"torn")
    assert ranks(2, lambda: run(tmp_path / "no")) == [1, 0]
    assert "train-001.tar is not a tar archive" in capfd.readouterr().err


def test_an_image_of_a_tar_that_cannot_be_read(voc, checkpoint, tmp_path):
    """It is left out and listed, up to a share of the images; strict allows none."""
    (tar,) = voc_tars(voc, data_of(voc).samples("train"), 6).values()
    whole = (voc / "JPEGImages/p1.jpg").read_bytes()
    (tmp_path / "x.tar").write_bytes(tar.replace(whole, whole[:-500] + bytes(500)))
    run = partial(generate, checkpoint, tmp_path / "c", images=str(tmp_path / "x.tar"), **SETTINGS)
    with pytest.raises(InputError, match=r"1 of 6 images cannot be read, and max_unreadable allows a share of 0\.01"):
        run()
    with pytest.raises(InputError, match=r"image tar://p1\.jpg::.*/x\.tar#\d+\+\d+ cannot be read, it is truncated"):
        run(strict=True)
    run(max_unreadable=0.5)
    cache = SeedCache(tmp_path / "c")
    assert (list(cache.left_out), len(cache)) == (["p1"], 5)


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_partitions_of_which_one_is_killed(voc, checkpoint, tmp_path, s3, monkeypatch, storage):
    """Three partitions in any order, one of them killed after its first shard and started again; and all at once."""
    folder = {"local": tmp_path, "s3": UPath(f"{s3}/job")}[storage]
    for name, content in voc_tars(voc, data_of(voc).samples("train"), 1).items():
        if storage == "local":
            (tmp_path / "tars").mkdir(exist_ok=True)
        write_atomically(folder / "tars" / name, content)

    def write(name, partition="0/1"):
        generate(
            checkpoint, UPath(f"{folder}/{name}"), images=f"{folder}/tars/train-{{000..005}}.tar",
            partition=partition, **SETTINGS,
        )  # fmt: skip

    write("whole")
    whole, writing = shards_in(f"{folder}/whole"), SeedCacheWriter.write
    with monkeypatch.context() as patch:
        patch.setattr(SeedCacheWriter, "write", lambda *arguments: (writing(*arguments), time.sleep(100)))
        pid = child(lambda: write("parts", "1/3"))
    while not shards_in(f"{folder}/parts"):
        time.sleep(0.05)
    kill(pid)
    assert len(shards_in(f"{folder}/parts")) == 1
    for part in (2, 1, 0):
        pid = child(lambda part=part: write("parts", f"{part}/3"))
        assert os.waitpid(pid, 0)[1] == 0
    assert shards_in(f"{folder}/parts") == whole
    assert len(whole) == 6
    pids = [child(lambda part=part: write("twice", f"{part}/2")) for part in (0, 1, 1)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert shards_in(f"{folder}/twice") == whole
    assert SeedCache(UPath(f"{folder}/twice")).ids == tuple(f"p{number}" for number in range(6))


def test_threads_of_the_network(checkpoint, tmp_path, monkeypatch):
    """As many as requested; afterwards the process has as many as before."""
    found, before = [], torch.get_num_threads()

    def recorded(_module, _batch):
        found.append(torch.get_num_threads())
        raise InputError("enough is known")

    monkeypatch.setattr(CamModule, "predict_seeds", recorded)
    with pytest.raises(InputError, match="enough is known"):
        generate(checkpoint, tmp_path / "c", threads=before + 1, **SETTINGS)
    assert found == [before + 1]
    assert torch.get_num_threads() == before


def shards_in(folder):
    """The content of the shards in a folder, by path or URI."""
    try:
        names = list_folder(UPath(folder))[1]
        return {name: read_bytes(f"{folder}/{name}") for name in names if name[0] != "."}
    except FileNotFoundError:
        return {}


def replace_cues(monkeypatch, label, other):
    """Let `CamModule` write another label in place of one."""
    original = CamModule.cues

    def replaced(self, seed):
        cues = original(self, seed)
        return np.where(cues == label, other, cues).astype(np.uint8)

    monkeypatch.setattr(CamModule, "cues", replaced)


def test_classes_without_cues_are_reported(checkpoint, tmp_path, monkeypatch, capsys):
    generate(checkpoint, tmp_path / "all", **SETTINGS)
    assert "fewer than half of the tags" not in capsys.readouterr().err
    replace_cues(monkeypatch, 2, 0)
    generate(checkpoint, tmp_path / "some", **SETTINGS)
    cache = SeedCache(tmp_path / "some")
    count = sum(1 in cache.maps(name)[0] for name in cache.ids)
    what = "the new cues contain fewer than half of the tags of some classes"
    printed = capsys.readouterr().err
    assert f"warning: {what}: {cache.classes[1]} in 0 of {count} images. Look at them" in printed
    assert "there is background" not in printed


def test_images_whose_tags_are_not_known_get_no_cue(checkpoint, tmp_path, monkeypatch):
    """Not even background; the others keep their bytes."""
    generate(checkpoint, tmp_path / "known", **SETTINGS)
    original = VOCDataModule.samples

    def without_tags(self, split, **given):
        return [replace(each, tags=None) if each.id == "p1" else each for each in original(self, split, **given)]

    monkeypatch.setattr(VOCDataModule, "samples", without_tags)
    with pytest.raises(InputError, match="labels_sha256"):
        generate(checkpoint, tmp_path / "known", **SETTINGS)
    generate(checkpoint, tmp_path / "unknown", **SETTINGS)
    known, unknown = SeedCache(tmp_path / "known"), SeedCache(tmp_path / "unknown")
    assert known.ids == unknown.ids
    for name in known.ids:
        assert (unknown.cues(name) == (255 if name == "p1" else known.cues(name))).all()
    assert (known.cues("p1") != 255).any()


def test_unknown_tags_are_others_than_none(checkpoint, tmp_path, monkeypatch):
    """An image without tags is background everywhere; one whose tags are not known is not."""
    original, tags = VOCDataModule.samples, {}

    def changed(self, split, **given):
        return [replace(each, tags=tags["p1"]) if each.id == "p1" else each for each in original(self, split, **given)]

    monkeypatch.setattr(VOCDataModule, "samples", changed)
    tags["p1"] = frozenset()
    generate(checkpoint, tmp_path / "c", **SETTINGS)
    tags["p1"] = None
    with pytest.raises(InputError, match="labels_sha256"):
        generate(checkpoint, tmp_path / "c", **SETTINGS)


def test_cues_without_background_are_reported(checkpoint, tmp_path, monkeypatch, capsys):
    replace_cues(monkeypatch, 0, 255)
    generate(checkpoint, tmp_path / "some", **SETTINGS)
    count = len(SeedCache(tmp_path / "some"))
    assert f"warning: in the new cues there is background in 0 of {count} images. Look at" in capsys.readouterr().err


def test_images_without_tags_and_cues_do_not_count_as_lost_background(checkpoint, tmp_path, monkeypatch, capsys):
    """The CRF gives them no cue, and most images may have no tag."""
    original = VOCDataModule.samples

    def cues(_module, seed):
        return np.full((40, 40), 0 if len(seed.classes) else 255, np.uint8)

    def untagged(self, split, **given):
        samples = original(self, split, **given)
        return [samples[0], *(replace(each, tags=frozenset()) for each in samples[1:])]

    monkeypatch.setattr(CamModule, "cues", cues)
    monkeypatch.setattr(VOCDataModule, "samples", untagged)
    generate(checkpoint, tmp_path / "c", **SETTINGS)
    assert "there is background" not in capsys.readouterr().err


def test_a_process_that_has_finished_waits_for_the_others():
    """Shards take unequal time: a limit, here of 2 seconds, would end the processes that still compute."""

    def work(*, wait):
        rank = int(os.environ["LOCAL_RANK"])
        torch.distributed.init_process_group("gloo", rank=rank, timeout=timedelta(seconds=2))
        if wait:
            wait_for_slower_processes()
        time.sleep(5 * rank)
        assert gather_objects(rank) == [0, 1]

    assert ranks(2, lambda: work(wait=True)) == [0, 0]
    assert ranks(2, lambda: work(wait=False))[0] == 1
