"""What a GPU computes Mimi's products in. A CPU's are always exact.

torch's own default lets cuDNN round the inputs of convolutions to TF32, so exact products have to be asked for. The
quantizer's distances stay float32 in all of them: the nearest entry should be the nearest one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from services.codec.packed import Convolution, Linear

CodecPrecision = Literal["fp32", "tf32", "bf16"]


def set_precision(precision: CodecPrecision, device: torch.device) -> None:
    """Of all float32 products of this process. Raises ValueError for one that the device does not have."""
    if device.type == "cpu" and precision != "fp32":
        raise ValueError(f"--codec-precision {precision} is for GPUs; a CPU computes in fp32")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def lower(*parts: nn.Module) -> None:
    """From now on the parts' products are computed in bfloat16, with sums in float32; what is remembered stays float32.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, Convolution | Linear):
                module.to_bfloat16()
