"""Accumulated gradients, bfloat16, what is refused, and processes as torchrun and srun start them."""

import os

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from datamodules.errors import InputError
from seeds.checkpoints import load_task
from seeds.classifier import ClassifierTask
from seeds.distributed import require_one_process
from tests.processes import ranks
from tests.training.conftest import data_of, trainer_of
from tests.training.fits import fit
from training.cli import main
from training.lightning_cli import AutoPrecisionTrainer
from training.runs.callbacks import StepSeed
from training.segmentation_task import SegmentationTask

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
RESNET = {
    "encoder": "resnet18",
    "output_stride": 8,
    "network_args": {"encoder_depth": 3, "decoder_channels": 16, "decoder_atrous_rates": [2, 4, 6]},
}
SOLVER = {"optimizer": "sgd", "lr": 1e-2, "schedule": "poly", "warmup_steps": 1}


def segmentation(classes, **settings):
    return SegmentationTask(classes, **RESNET, **(SOLVER | settings))


def classifier(classes, **settings):
    return ClassifierTask(classes, "resnet18", output_stride=8, depth=3, **(SOLVER | settings))


TASKS = {"SEC": segmentation, "classifier": classifier}


def task_of(kind, data, *, steady=True, **settings):
    """A task, the same at each call; steady: nothing in it is random or looks at the whole batch."""
    torch.manual_seed(0)
    task = TASKS[kind](list(data.classes), **settings)
    for module in task.modules() if steady else ():
        if isinstance(module, nn.Dropout | nn.BatchNorm2d):
            stay(module.eval())
    return task


def stay(module):
    """Keep a module in its mode, also when Lightning changes it."""
    module.train = lambda _: module


def two(count):
    return {"devices": count, "strategy": "ddp_fork" if count > 1 else "auto"}


class Gradients(pl.Callback):
    """Saves the gradients of each step."""

    def __init__(self, folder):
        self.folder = folder

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):  # noqa: ARG002
        if trainer.is_global_zero:
            found = {name: each.grad for name, each in pl_module.named_parameters() if each.requires_grad}
            torch.save(found, self.folder / f"{trainer.global_step}.pt")


def trained(kind, voc, cues, folder, *, processes=1, accumulate=1, batch=4):
    """Two steps of four images each, augmented; the gradients of each."""
    folder.mkdir()
    given = {"targets": "cues", "cues": str(cues)} if kind == "SEC" else {}
    augment = {"crop": (0.5, 1.0), "flip": True, "color": 0.2}
    pl.seed_everything(3)
    data = data_of(voc, batch_size=batch, augment=augment, **given)
    trainer = trainer_of(
        folder, limit_val_batches=0, max_steps=2, accumulate_grad_batches=accumulate, callbacks=[Gradients(folder)],
        **two(processes),
    )  # fmt: skip
    trainer.fit(task_of(kind, data), data)
    assert len(list(folder.glob("*.pt"))) == 2
    return [torch.load(folder / f"{step}.pt") for step in range(2)]


@pytest.fixture(scope="module", params=TASKS)
def one(request, voc, cues, tmp_path_factory):
    """One process with batches of four."""
    return request.param, trained(request.param, voc, cues, tmp_path_factory.mktemp("one") / "run")


@pytest.mark.parametrize(("processes", "batch"), [(1, 2), (2, 1)])
def test_accumulated_batches_give_the_gradients_of_one_larger_batch(one, voc, cues, tmp_path, processes, batch):
    """Two batches to a step, in one process and in each of two."""
    kind, expected = one
    found = trained(kind, voc, cues, tmp_path / "run", processes=processes, accumulate=2, batch=batch)
    for step in range(2):
        assert expected[step].keys() == found[step].keys()
        assert max(each.abs().max() for each in expected[step].values()) > 1e-3
        for name, gradient in expected[step].items():
            torch.testing.assert_close(found[step][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_fewer_images_than_a_step_takes(voc, tmp_path):
    data = data_of(voc, batch_size=2)
    with pytest.raises(InputError, match=r"9 images do not fill one step of 5 batches \(accumulate_grad_batches\)"):
        trainer_of(tmp_path, accumulate_grad_batches=5).fit(task_of("classifier", data), data)


def test_accumulation_goes_on_where_it_was(voc, cues, tmp_path):
    """Stopped after an epoch of two steps and gone on: bit for bit the weights of a run in one go; with dropout."""
    data = data_of(voc, batch_size=2, targets="cues", cues=str(cues))

    def run(folder, epochs, ckpt_path=None):
        pl.seed_everything(3)
        trainer = trainer_of(
            tmp_path / folder, max_steps=-1, max_epochs=epochs, accumulate_grad_batches=2, callbacks=[StepSeed()],
            limit_val_batches=0,
        )  # fmt: skip
        task = task_of("SEC", data, steady=False, schedule="step", step_size=3)
        trainer.fit(task, data_of(voc, batch_size=2, targets="cues", cues=str(cues)), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{folder}.ckpt")
        return trainer

    whole = run("whole", 2)
    assert whole.global_step == 4  # nine images: two steps of two batches of two, and a ninth left out
    assert whole.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)
    run("half", 1)
    run("rest", 2, ckpt_path=tmp_path / "half.ckpt")
    found, expected = (torch.load(tmp_path / name, weights_only=True) for name in ("rest.ckpt", "whole.ckpt"))
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name


@pytest.mark.parametrize("kind", TASKS)
def test_bfloat16(voc, cues, tmp_path, kind):
    """Half the bits in the convolutions: nearly the same losses; weights and checkpoints stay float32."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        data = data_of(voc, targets="cues", cues=str(cues))
        trainer = trainer_of(tmp_path, max_steps=2, precision=precision, limit_val_batches=1)
        task = task_of(kind, data)
        trainer.fit(task, data)
        losses.append(trainer.callback_metrics["train/loss"].item())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    loaded = load_task(tmp_path / "half.ckpt", type(task))[0]
    assert {each.dtype for each in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("words", "effective", "made"),
    [
        ((), 3, 3),
        (("--trainer.accumulate_grad_batches=3",), 9, 1),
        (("--trainer.max_epochs=4", "--trainer.accumulate_grad_batches=2"), 6, 4),
        (("--trainer.max_epochs=-1", "--trainer.max_steps=2"), 3, 2),
    ],
)
def test_updates_are_printed_before_training_starts(voc, cues, tmp_path, capsys, words, effective, made):
    """Nine images in batches of three."""
    assert fit(voc, cues, tmp_path / "run", *words) == 0
    output = capsys.readouterr().err
    assert f"training on 9 images, effective batch size {effective}: {made} updates of the weights" in output
    factors = f"a step sees 3 (batch_size) x 1 (processes) x {effective // 3} (accumulate_grad_batches) images"
    assert (factors in output) is (effective > 3)
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == made


def test_refused_in_one_sentence(voc, cues, tmp_path, capsys):
    def error(*words):
        assert fit(voc, cues, tmp_path / "run", *words) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "torch has no SyncBatchNorm for the CPU" in error("--trainer.devices=2", "--trainer.sync_batchnorm=true")
    assert "choose bf16-mixed" in error("--trainer.precision=bf16-true")
    assert "precision 64-true is not supported" in error("--trainer.precision=64-true")
    assert "transformer_engine" in error("--trainer.precision=transformer-engine")
    assert "torch_xla" in error("--trainer.accelerator=tpu")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
        assert f"trainer.{name} is 0, and must be positive" in error(f"--trainer.{name}=0")
    assert "gradient_clip_val is -0.5, and must not be negative" in error("--trainer.gradient_clip_val=-0.5")
    assert "not in bounds" in error("--seed_everything=99999999999")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0"])
def test_synchronized_batch_norms_keep_the_network(encoder):
    """torch's own conversion removes the activations that timm has in its batch norms."""
    trainer = AutoPrecisionTrainer(accelerator="cpu", devices=1, logger=False, sync_batchnorm=True)
    layer_sync = trainer._accelerator_connector._layer_sync
    task = SegmentationTask(["a", "b"], encoder=encoder).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, norms = task(images), sum(isinstance(module, nn.BatchNorm2d) for module in task.modules())
    assert norms > 20
    converted = layer_sync.apply(task)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == norms
    assert torch.equal(converted(images), before)
    again = layer_sync.apply(layer_sync.revert(converted))  # of a second training
    assert torch.equal(again(images), before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="SyncBatchNorm needs two GPUs")
def test_batch_norms_of_two_gpus_see_one_batch(voc, tmp_path):
    """Their gradients are those of one GPU with the doubled batch, batch norms training."""
    found = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        pl.seed_everything(3)
        data = data_of(voc, batch_size=4 // count)
        trainer = AutoPrecisionTrainer(
            accelerator="gpu", precision="32-true", default_root_dir=folder, max_steps=1, sync_batchnorm=True,
            limit_val_batches=0, logger=False, enable_checkpointing=False, callbacks=[Gradients(folder)], devices=count,
            strategy="ddp_spawn" if count > 1 else "auto",
        )  # fmt: skip
        trainer.fit(task_of("classifier", data, steady=False), data)
        found.append(torch.load(folder / "0.pt", map_location="cpu"))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


# --- as torchrun and srun start it


def test_as_torchrun_starts_it(voc, cues, tmp_path):
    """Two processes with torchrun's variables find each other from them alone."""

    def work():
        os.environ.update(TORCHELASTIC_RUN_ID="x", LOCAL_WORLD_SIZE="2", RANK=os.environ["LOCAL_RANK"])
        os.environ["GROUP_RANK"] = "0"
        assert fit(voc, cues, tmp_path / "run") == 0

    assert ranks(2, work) == [0, 0]
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 1  # 9 // (2 * 3)


def test_as_srun_starts_it(voc, cues, tmp_path):
    """Two tasks of a SLURM step, as far as variables tell; other numbers than the trainer's are refused."""

    def work(*words):
        step = {"JOB_ID": 12345, "JOB_NAME": "t", "NTASKS": 2, "NTASKS_PER_NODE": 2, "PROCID": os.environ["LOCAL_RANK"]}
        step |= {"LOCALID": os.environ["LOCAL_RANK"], "NODEID": 0, "NODELIST": "127.0.0.1", "STEP_ID": 0}
        os.environ.update({f"SLURM_{name}": str(value) for name, value in step.items()})
        os.environ["SLURM_STEP_NUM_TASKS"] = "2"
        for name in ("WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"):
            del os.environ[name]
        assert fit(voc, cues, tmp_path / "run", *words) == (0 if words else 1)

    assert ranks(2, work) == [0, 0]
    assert not (tmp_path / "run").exists()
    assert ranks(2, lambda: work("--trainer.devices=2")) == [0, 0]
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.parametrize("command", ["fit", "pseudo-label"])
def test_a_job_of_slurm_with_fewer_tasks_than_devices(voc, cues, checkpoint, tmp_path, monkeypatch, capsys, command):
    """In a script of sbatch, without srun: Lightning would train in one process without a word."""
    job = {
        "JOB_ID": 12345,
        "JOB_NAME": "t",
        "NTASKS": 1,
        "PROCID": 0,
        "LOCALID": 0,
        "NODEID": 0,
        "NODELIST": "127.0.0.1",
    }
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    if command == "fit":
        assert fit(voc, cues, tmp_path / "run", "--trainer.devices=2") == 1
    else:
        words = [f"--checkpoint={checkpoint}", f"--output={tmp_path / 'run'}", "--devices=2", "--accelerator=cpu"]
        assert main([command, *words]) == 1
    problem = "devices x num_nodes is 2, and SLURM's job has 1 tasks (SLURM_NTASKS): start the command with srun"
    assert problem in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_commands_of_one_process(monkeypatch, capsys):
    for mark, name in (("TORCHELASTIC_RUN_ID", "WORLD_SIZE"), ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")):
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            require_one_process("evaluate")
            patch.setenv(mark, "1")
            assert main(["evaluate", "--checkpoint=x"]) == 1
            assert f"evaluate works in one process, and 2 were started ({name}=2)" in capsys.readouterr().err
            assert main(["run", "--config=none.yaml"]) == 1  # its stages would wait for each other
            assert f"run works in one process, and 2 were started ({name}=2)" in capsys.readouterr().err
            assert main(["seeds", "generate", "--checkpoint=none", "--output=x"]) == 1  # this may be so started
            assert "there is no checkpoint none" in capsys.readouterr().err
