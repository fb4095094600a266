"""A digest that tells the weights of one file from those of another; every tensor changes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

# Up to here all bytes are read: 0.7 s. Beyond, it would be time that a start does not have (15 GB take 12 s and more).
WHOLE_BYTES = 1 << 30
# Of each tensor of a larger file, evenly spaced, its first and its last bytes among them: training moves every block.
SAMPLED_BLOCKS = 16
BLOCK_BYTES = 4096
READ_BYTES = 1 << 20
# A header of more is refused by the safetensors library, too.
MOST_HEADER_BYTES = 100_000_000


def safetensors_digest(path: Path) -> bytes:
    """A digest of the names, types, shapes and numbers of all tensors in a safetensors file; 32 bytes.

    Equal tensors in another order, or with other metadata, give the same digest. A tensor of a file beyond WHOLE_BYTES
    is known by SAMPLED_BLOCKS of its blocks. Raises ValueError for another kind of file, OSError.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        tensors, begin = _header(file, size)
        for name, tensor in sorted(tensors.items()):
            first, end = (begin + int(offset) for offset in tensor["data_offsets"])
            if not begin <= first <= end <= size:
                raise ValueError(f"its tensor {name} lies beyond the end of the file")
            digest.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
            _digest_range(file, first, end, size <= WHOLE_BYTES, digest)
    return digest.digest()


def _header(file: BinaryIO | Any, size: int) -> tuple[dict[str, Any], int]:
    """The tensors that the file names, and where their bytes begin."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
        raise ValueError("it is no safetensors file, or it is cut short")
    try:
        tensors: dict[str, Any] = json.loads(file.read(length))
        tensors.pop("__metadata__", None)
        for tensor in tensors.values():
            _, _, (_, _) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("it is no safetensors file") from None
    return tensors, 8 + length


def _digest_range(file: BinaryIO | Any, first: int, end: int, whole: bool, digest: Any) -> None:
    if whole or end - first <= SAMPLED_BLOCKS * BLOCK_BYTES:
        file.seek(first)
        while first < end and (block := file.read(min(READ_BYTES, end - first))):
            digest.update(block)
            first += len(block)
        return
    for index in range(SAMPLED_BLOCKS):
        file.seek(first + (end - first - BLOCK_BYTES) * index // (SAMPLED_BLOCKS - 1))
        digest.update(file.read(BLOCK_BYTES))
