"""Facts about the GPUs that we plan for: the one place that has them. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
CONTEXT_BYTES = 1056 * MIB
"""What the driver keeps of a GPU and what a process's CUDA context takes, about; a process that runs reads what is
free instead."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, from its maker's data sheet."""

    name: str
    memory_bytes: int
    """As nvidia-smi has it."""
    bytes_per_s: float
    """Peak bandwidth of its memory."""
    watts: int
    """The most that its maker lets it take (TDP): no measurement of ours."""
    aliases: tuple[str, ...]
    """How CUDA's names of it end; its variants with another memory are not it."""


GPUS = (
    Gpu("L4", 23_034 * MIB, 300e9, 72, ("NVIDIA L4",)),
    Gpu("A10", 23_028 * MIB, 600e9, 150, ("NVIDIA A10",)),
    Gpu("L40S", 46_068 * MIB, 864e9, 350, ("NVIDIA L40S",)),
    Gpu("A100 40 GB", 40_960 * MIB, 1_555e9, 400, ("A100-SXM4-40GB", "A100-PCIE-40GB")),
    Gpu("A100 80 GB", 81_920 * MIB, 2_039e9, 400, ("A100-SXM4-80GB", "A100 80GB PCIe")),
    Gpu("H100 80 GB", 81_559 * MIB, 3_350e9, 700, ("NVIDIA H100 80GB HBM3",)),
    Gpu("H200", 143_771 * MIB, 4_800e9, 700, ("NVIDIA H200",)),
    Gpu("B200", 183_359 * MIB, 8_000e9, 1_000, ("NVIDIA B200",)),
)


def gpu_named(device_name: str) -> Gpu | None:
    """The GPU that CUDA calls so; None for one that is not in the table."""
    return next((gpu for gpu in GPUS if device_name.endswith(gpu.aliases)), None)
