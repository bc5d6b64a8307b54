"""The recorded revision of the code, packages and list of images; a missing or slow git does no harm."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from datamodules.annotations.shapes import Box, Point, Scribble
from datamodules.errors import InputError
from datamodules.masks import RleMask
from datamodules.sample import Sample
from datamodules.seed_cache import SeedCache
from seeds import provenance as module
from seeds.generate_seeds import generate_seeds
from seeds.provenance import annotations_sha256, git_revision, ids_sha256, package_versions, provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")


def git(folder, *words):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false", "-c", "core.hooksPath="]
    done = subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one commit, and the commit's name."""
    for name in module._ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init")
    (folder / "code.py").write_text("1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-m", "one")
    git_revision.cache_clear()
    yield folder, git(folder, "rev-parse", "HEAD")
    git_revision.cache_clear()


@needs_git
def test_a_checkout_is_known_by_its_commit_even_under_a_tag(checkout):
    folder, commit = checkout
    git(folder, "tag", "v1")
    (folder / "notes.txt").write_text("not git's\n")
    assert git_revision(folder) == commit
    assert len(commit) == 40


@needs_git
def test_a_changed_file_is_told(checkout):
    folder, commit = checkout
    (folder / "code.py").write_text("2\n")
    assert git_revision(folder) == f"{commit}+changes"


@needs_git
def test_another_repositorys_hook_does_not_lead_astray(checkout, tmp_path, monkeypatch):
    folder, commit = checkout
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_revision(folder) == commit


@needs_git
def test_a_package_installed_inside_a_checkout_is_not_the_checkout(checkout):
    folder, _ = checkout
    (folder / "site-packages").mkdir()
    assert git_revision(folder / "site-packages") is None


@needs_git
def test_a_checkout_without_a_commit(tmp_path):
    git(tmp_path, "init")
    assert git_revision(tmp_path) is None


@needs_git
def test_no_git_at_all(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(checkout[0]) is None


def test_a_git_that_does_not_answer(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(module, "GIT_SECONDS", 0.2)
    assert git_revision(tmp_path) is None


def test_provenance_without_git_has_no_such_key(monkeypatch):
    monkeypatch.setattr(module, "git_revision", lambda _root: None)
    assert set(provenance()) == {"packages", "date", "command"}
    json.dumps(provenance())


def test_packages_that_are_not_installed_are_named_too(monkeypatch):
    monkeypatch.setattr(module, "DISTRIBUTIONS", ("torch", "no_such_package"))
    found = package_versions("pytest")
    assert found["no_such_package"] == "not installed"
    assert found["pytest"] == pytest.__version__
    assert list(found) == ["python", "torch", "no_such_package", "pytest"]


def test_the_checksum_of_a_list_of_images_depends_on_their_order():
    assert ids_sha256(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()
    assert ids_sha256(["b", "a"]) != ids_sha256(["a", "b"])


def test_a_cache_does_not_depend_on_the_revision_but_on_packages(checkpoint, tmp_path, monkeypatch):
    """The same command at another revision finds the cache complete; with another package it is refused."""
    monkeypatch.setattr(module, "git_revision", lambda _root: "a" * 40)
    generate_seeds(checkpoint, tmp_path / "cache")
    monkeypatch.setattr(module, "git_revision", lambda _root: "b" * 40)
    generate_seeds(checkpoint, tmp_path / "cache")
    assert SeedCache(tmp_path / "cache").settings["packages"] == package_versions()
    monkeypatch.setattr("seeds.cache_job.package_versions", lambda *_more: {"torch": "0"})
    with pytest.raises(InputError, match=r"packages\.torch"):
        generate_seeds(checkpoint, tmp_path / "cache")


def test_the_checksum_of_annotations_does_not_depend_on_the_folder_of_their_file():
    """A job on another machine has the same result."""
    mask = np.eye(4, dtype=np.uint8)
    here, there = (Sample("a", "a.jpg", mask=RleMask.from_label_map(f"of {path}", mask)) for path in ("/x/b", "c"))
    other = Sample("a", "a.jpg", mask=RleMask.from_label_map("of /x/b", mask.T[::-1]))
    assert annotations_sha256([here]) == annotations_sha256([there]) != annotations_sha256([other])


def test_the_checksum_of_annotations_depends_on_all_that_is_drawn():
    sample = Sample("a", "a.jpg", points=(Point("cat", 1, 2),), boxes=(Box("cat", 0, 0, 2, 2),))
    changes = (
        {"id": "b"}, {"points": (Point("cat", 1, 3),)}, {"points": (Point("dog", 1, 2),)},
        {"scribbles": (Scribble("cat", ((0, 0),)),)}, {"boxes": (Box("cat", 0, 0, 2, 3),)},
    )  # fmt: skip
    found = {annotations_sha256([replace(sample, **change)]) for change in ({}, *changes)}
    assert len(found) == 1 + len(changes)
