"""The floating-point precision that networks compute in, chosen by the processor at hand."""

from typing import Literal

from datamodules.progress import print_message

Precision = Literal["auto", "32-true", "bf16-mixed"]
"""The option ``precision``, by Lightning's names: float32, or convolutions and matrix products in bfloat16."""

ResolvedPrecision = Literal["32-true", "bf16-mixed"]

CPU_UNITS = ("amx_bf16", "avx512_bf16", "bf16")  # torch's names; the last is Arm's
CUDA_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16


def computes_bfloat16(accelerator: str) -> bool:
    """Return whether an accelerator computes bfloat16 natively.

    One that does not still runs bfloat16, several times slower than float32: a MobileNetV2 training step takes 4.3
    times as long on a CPU with AVX2 alone.

    Args:
        accelerator: Lightning's name: auto, cpu, gpu, cuda, …

    Returns:
        True for CUDA devices of capability 8.0 and above, and for CPUs with AMX, AVX512-BF16 or Arm's BF16
        instructions; False for all others.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return all(
            torch.cuda.get_device_capability(each) >= CUDA_CAPABILITY for each in range(torch.cuda.device_count())
        )
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        units = torch.cpu.get_capabilities()
        onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return onednn and any(units.get(name) for name in CPU_UNITS)  # bfloat16 convolutions are oneDNN's alone
    return False


def resolve_precision(precision: Precision, accelerator: str = "auto") -> ResolvedPrecision:
    """Return the precision to compute in; where it is ``auto``, choose it and print the choice.

    Args:
        precision: the option.
        accelerator: Lightning's name of the device.

    Returns:
        ``bf16-mixed`` where `computes_bfloat16`, else ``32-true``.
    """
    if precision != "auto":
        return precision
    native = computes_bfloat16(accelerator)
    chosen: ResolvedPrecision = "bf16-mixed" if native else "32-true"
    print_message(f"precision: {chosen}, as this processor {'computes' if native else 'does not compute'} bfloat16")
    return chosen
