import os
import zipfile

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters_context
from safetensors.torch import save_file

from datamodules.errors import InputError
from seeds.checkpoints import load_task, read_checkpoint, read_file
from seeds.classifier import ClassifierTask


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    file, trace = tmp_path / "bad.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {}, "bomb": Bomb(trace)}, file)
    with pytest.raises(InputError, match=r"bad\.ckpt is refused"):
        read_file(file)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_not_a_checkpoint(tmp_path, content):
    file = tmp_path / "bad.ckpt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.ckpt .*(code|damaged|empty|archive|magic)"):
        read_file(file)


def test_a_folder_of_runs(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network/last.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a folder: its checkpoint is .*network.last\.ckpt"):
        read_file(tmp_path)
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier/last.ckpt").write_bytes(b"")
    os.utime(tmp_path / "classifier/last.ckpt", (0, 0))  # of an earlier stage
    with pytest.raises(InputError, match=r"its checkpoint is .*network.last\.ckpt"):
        read_file(tmp_path)


def test_safetensors(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3.0)}, file)
    assert torch.equal(read_file(file)["a"], torch.arange(3.0))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"weights\.safetensors cannot be read"):
        read_file(file)


def test_torchscript(tmp_path):
    file = tmp_path / "clip.pt"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("constants.pkl", "data.pkl", "version"):
            archive.writestr(f"clip/{name}", b"3")
    with pytest.raises(InputError, match=r"clip\.pt .* TorchScript archive, which carries code; a state dict"):
        read_file(file)


def test_truncated(tmp_path, checkpoint):
    file = tmp_path / "short.ckpt"
    file.write_bytes(checkpoint.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"short\.ckpt"):
        read_file(file)


def test_missing(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint .*none\.ckpt"):
        read_file(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"tag2mask": {"task": "segmentation", "version": 1}},
      "checkpoint of the task 'segmentation'; one of 'classifier'"),
     ({"tag2mask": {"task": "classifier", "version": 2}}, "version 2"),
     ({"tag2mask": None}, "not written by tag2mask")],
)  # fmt: skip
def test_other_checkpoints(tmp_path, checkpoint, change, words):
    file = tmp_path / "other.ckpt"
    torch.save(read_checkpoint(checkpoint, "classifier") | change, file)
    with pytest.raises(InputError, match=words):
        read_checkpoint(file, "classifier")


def test_a_loaded_task_is_the_saved_one(checkpoint, tmp_path):
    content = read_checkpoint(checkpoint, "classifier")
    # settings that would call something, or need a file that is gone, are not followed
    content["hyper_parameters"] |= {"_instantiator": "os.abort", "_class_path": "os.abort", "weights": "/gone.pth"}
    file = tmp_path / "copy.ckpt"
    torch.save(content, file)
    task = load_task(file, ClassifierTask)[0]
    assert not task.training
    assert task.classes == ("red", "blue")
    for key, value in task.state_dict().items():
        assert torch.equal(value, content["state_dict"][key])


def test_weights_of_another_architecture(tmp_path, checkpoint):
    content = read_checkpoint(checkpoint, "classifier")
    content["hyper_parameters"]["backbone"] = "mobilenet_v2"
    file = tmp_path / "other.ckpt"
    torch.save(content, file)
    with pytest.raises(InputError, match=r"does not fit the network its own settings describe: Missing key.*\.weight"):
        load_task(file, ClassifierTask)[0]


def test_classes_are_remembered_under_the_command_line(tmp_path):
    """There the classes come from the data and are missing in what Lightning would save by itself."""
    with _given_hyperparameters_context({"backbone": "resnet18"}, "pytorch_lightning.cli.instantiate_module"):
        task = ClassifierTask(["a", "b"], backbone="resnet18")
    pl.Trainer(accelerator="cpu", logger=False).strategy.connect(task)
    assert task.hparams["classes"] == ["a", "b"]
    assert "_instantiator" not in task.hparams


def test_a_storage_that_is_not_known(tmp_path):
    with pytest.raises(InputError, match=r"foo://bar/x\.pth cannot be accessed: Protocol not known: foo"):
        read_file("foo://bar/x.pth")
