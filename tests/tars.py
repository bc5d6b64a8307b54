"""Tar files in WebDataset's format for tests."""

import io
import tarfile


def tar_bytes(members):
    """The bytes of a tar file: members by name, each bytes or text."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def voc_tars(voc, samples, size):
    """Tar files of the samples of a VOC folder, ``size`` in each: content by name, ``train-000.tar`` …."""
    tars = {}
    for first in range(0, len(samples), size):
        members = {}
        for sample in samples[first : first + size]:
            members[f"{sample.id}.jpg"] = (voc / "JPEGImages" / f"{sample.id}.jpg").read_bytes()
            members[f"{sample.id}.txt"] = "\n".join(sorted(sample.tags))
        tars[f"train-{first // size:03d}.tar"] = tar_bytes(members)
    return tars
