"""Which changes of the project's own files make another revision of its code."""

from datamodules import source_revision as source_code
from datamodules.source_revision import ALL_PACKAGES, source_revision


def test_every_source_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(source_code, "_ROOT", tmp_path)
    for name in (
        "datamodules/a.py",
        "seeds/deep/b.py",
        "training/c.css",
        "training/__pycache__/c.pyc",
        "training/d.txt",
        "training/card.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    first = source_revision(ALL_PACKAGES)
    assert list(first) == ["datamodules", "seeds", "training"]
    assert len(set(first.values())) == 3
    for name in ("training/__pycache__/c.pyc", "training/d.txt"):
        (tmp_path / name).write_text("2")
        assert source_revision(ALL_PACKAGES) == first
    (tmp_path / "seeds/deep/b.py").write_text("2")
    second = source_revision(ALL_PACKAGES)
    assert {name for name in first if first[name] != second[name]} == {"seeds"}
    (tmp_path / "seeds/deep/b.py").rename(tmp_path / "seeds/deep/e.py")
    assert source_revision(("seeds",)) not in ({"seeds": first["seeds"]}, {"seeds": second["seeds"]})
    for name in ("training/c.css", "training/card.md"):
        (tmp_path / name).write_text("2")
        assert source_revision(ALL_PACKAGES)["training"] != first["training"]
        (tmp_path / name).write_text("1")
