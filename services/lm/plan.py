"""What each GPU holds of a model, and how fast a step on it could be at best. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from moshi.models import loaders

from services.lm.config import MOST_SLOTS
from services.lm.gpus import CONTEXT_BYTES, GPUS, Gpu
from services.lm.linear import Precision
from services.lm.sizing import KvPrecision, Size, size_of

PRECISIONS: tuple[tuple[Precision, KvPrecision], ...] = (
    ("bf16", "bf16"), ("bf16", "int8"), ("int8", "int8"), ("int4", "int8"))
"""fp8 takes what int8 takes."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    gpu: Gpu
    precision: Precision
    kv_precision: KvPrecision
    context_frames: int
    slots: int
    """0 where the model does not fit."""
    size: Size

    def floor_ms(self, rows: int) -> float:
        """Of a step of so many rows with full windows."""
        return self.size.floor_s(rows, self.gpu.bytes_per_s) * 1e3


def shape_of(config: dict[str, Any]) -> Any:
    """A `moshi.models.LMModel` without weights."""
    return loaders.get_moshi_lm(None, config | {"lora": False, "quantize": False}, device="meta", dtype=torch.bfloat16)


def plan(lm: Any, contexts: Sequence[int], gpus: Sequence[Gpu] = GPUS) -> Iterator[Row]:
    """Every GPU with every precision and context."""
    sizes = []
    for precision, kv_precision in PRECISIONS:
        size = size_of(lm, precision, kv_precision)
        sizes += [(precision, kv_precision, context, replace(size, slot_bytes=size.slot_bytes // lm.context * context))
                  for context in contexts]
    for gpu in gpus:
        for precision, kv_precision, context, size in sizes:
            try:
                slots = min(MOST_SLOTS, size.slots_in(gpu.memory_bytes - CONTEXT_BYTES, on_gpu=True))
            except ValueError:
                slots = 0
            yield Row(gpu, precision, kv_precision, context, slots, size)


def table(rows: Iterable[Row]) -> str:
    """As Markdown."""
    lines = ["| GPU | weights | keys, values | context | slots | floor, ms | floor of 1 row, ms | watts (TDP) |",
             "|---|---|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        floors = f"{row.floor_ms(row.slots):.1f} | {row.floor_ms(1):.1f}" if row.slots else "does not fit | "
        lines.append(f"| {row.gpu.name} | {row.precision} | {row.kv_precision} | {row.context_frames} | {row.slots} | "
                     f"{floors} | {row.gpu.watts} |")
    return "\n".join(lines)
