"""`python -m tests.lm.compiled_attention`: compiles the decode attention for GPUs that are not here.

Prints one JSON line: of each compute capability and kind of ring the size of what came out.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.lm import decode_attention

# A100, A10, L4 and L40S, H100 and H200, B200.
CAPABILITIES = (80, 86, 89, 90, 100)


def compiled(capability: int, ring: str, width: int) -> dict[str, object]:
    """Of the 7 B model's shape."""
    signature = {"heads": "*fp32", "ring": ring, "positions": "*i64", "sums": "*fp32", "marks": "*fp32",
                 "slots": "i32", "kv_heads": "i32", "context": "i32"}
    constants = {"PARTS": 4, "GROUPS": 1, "GROUPS_UP": 1, "DIM": 128, "DIM_UP": 128, "WIDTH": width,
                 "INT8": ring == "*i8", "BLOCK": decode_attention.BLOCK}
    attributes = {(index,): [["tt.divisibility", 16]] for index in range(5)}
    kernel = triton.compile(
        ASTSource(decode_attention._attend_part, {**signature, **dict.fromkeys(constants, "constexpr")}, constants,
                  attributes),
        target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    return {"capability": capability, "ring": ring, "cubin_bytes": len(kernel.asm["cubin"])}


if __name__ == "__main__":
    json.dump([compiled(capability, ring, width) for capability in CAPABILITIES
               for ring, width in (("*bf16", 128), ("*i8", 129))], sys.stdout)
