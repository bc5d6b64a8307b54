"""The Ray example of the tutorial: two workers write the cache of one process."""

from functools import partial
from pathlib import Path

import pytest

from datamodules.seed_cache import SeedCache
from tests.seed_caches import generate
from tests.test_docs import PAGES, blocks

ROOT = Path(__file__).resolve().parents[2]


def test_the_ray_example_of_the_tutorial(voc, checkpoint, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    (example,) = (block for block in blocks(PAGES / "tutorials" / "cluster.md", "python") if block.mark == "needs ray")
    code = example.code.replace("JobOptions(", 'JobOptions(shard_size=2, precision="32-true", ')  # there are few images
    assert code != example.code
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start = partial(ray.init, num_cpus=2, include_dashboard=False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr("sys.argv", ["ray_seeds.py", str(checkpoint), str(voc), str(tmp_path / "ray"), "3"])
    try:
        exec(compile(code, "ray_seeds.py", "exec"), {"__name__": "__main__"})
    finally:
        ray.shutdown()
    how = {"root": str(voc), "num_workers": 0, "shard_size": 2, "precision": "32-true"}
    generate(checkpoint, tmp_path / "one", **how)
    ones, others = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "ray"))
    assert ones == others
    assert len(ones) == 3
    assert len(SeedCache(tmp_path / "ray")) == 6
