"""`precision: auto`: bfloat16 where the processor computes it, float32 elsewhere."""

import pytest
import torch

import seeds.precision
from datamodules.seed_cache import SeedCache
from seeds.generate_seeds import generate_seeds
from seeds.job_options import JobOptions
from seeds.precision import computes_bfloat16, resolve_precision


@pytest.fixture
def processor(monkeypatch):
    """Return a function that sets the capabilities that torch reports; no GPU is available."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def have(**units):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)

    return have


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"avx2": True, "avx512_f": False}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),  # Skylake-X: emulated
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ],
)
def test_the_cpu_decides(processor, accelerator, units, expected):
    processor(**units)
    assert computes_bfloat16(accelerator) is expected


def test_without_onednn_there_are_no_bfloat16_convolutions(processor, monkeypatch):
    processor(avx512_bf16=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_bfloat16("cpu")


@pytest.mark.parametrize(("capabilities", "expected"), [([(7, 5)], False), ([(8, 0)], True), ([(9, 0), (7, 0)], False)])
def test_the_gpus_decide(processor, monkeypatch, capabilities, expected):
    processor(avx512_bf16=not expected)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
    for accelerator in ("auto", "gpu", "cuda"):
        assert computes_bfloat16(accelerator) is expected
    assert computes_bfloat16("cpu") is not expected


def test_apples_gpus_and_others_take_float32(processor, monkeypatch):
    processor(bf16=True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert not computes_bfloat16("auto")
    assert not computes_bfloat16("mps")
    assert not computes_bfloat16("tpu")
    assert computes_bfloat16("cpu")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_choice_is_printed_and_can_be_overridden(monkeypatch, capsys, native, expected):
    monkeypatch.setattr(seeds.precision, "computes_bfloat16", lambda _accelerator: native)
    assert resolve_precision("auto") == expected
    assert f"precision: {expected}" in capsys.readouterr().err
    assert resolve_precision("32-true") == "32-true"
    assert resolve_precision("bf16-mixed") == "bf16-mixed"
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_seeds_record_their_precision(checkpoint, tmp_path, monkeypatch, native, expected):
    monkeypatch.setattr(seeds.precision, "computes_bfloat16", lambda _accelerator: native)
    generate_seeds(checkpoint, tmp_path / "auto")
    generate_seeds(checkpoint, tmp_path / "given", job=JobOptions(precision=expected))
    for name in ("auto", "given"):
        assert SeedCache(tmp_path / name).settings["precision"] == expected
    one, other = ((tmp_path / name / "shard-00000.safetensors").read_bytes() for name in ("auto", "given"))
    assert one == other
