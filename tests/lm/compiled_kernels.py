"""`python -m tests.lm.compiled_kernels`: compiles the decode attention and the products of 8 bits for GPUs that are not
here.

Prints one JSON line: of each compute capability and kind of ring or weight the size of what came out.
"""

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.lm import decode_attention, eight_bit

# A100, A10, L4 and L40S, H100 and H200, B200.
CAPABILITIES = (80, 86, 89, 90, 100)


def compiled_attention(capability: int, ring: str, width: int) -> dict[str, object]:
    """Of the 7 B model's shape."""
    signature = {"heads": "*fp32", "ring": ring, "positions": "*i64", "sums": "*fp32", "marks": "*fp32",
                 "slots": "i32", "kv_heads": "i32", "context": "i32"}
    constants = {"PARTS": 4, "GROUPS": 1, "GROUPS_UP": 1, "DIM": 128, "DIM_UP": 128, "WIDTH": width,
                 "INT8": ring == "*i8", "BLOCK": decode_attention.BLOCK}
    attributes = {(index,): [["tt.divisibility", 16]] for index in range(5)}
    return {"capability": capability, "ring": ring} | compiled(
        decode_attention._attend_part, signature, constants, attributes, capability, {"num_warps": 4})


def compiled_product(capability: int, weight: str, rows: int) -> dict[str, object]:
    """Of a layer's largest product."""
    signature = {"x": "*fp32", "weight": weight, "scale": "*bf16", "residual": "*fp32", "answer": "*fp32",
                 "n": "i32", "outputs": "i32", "inputs": "i32"}
    constants = {"ADD": True, "ROWS": rows, "OUTPUTS": 64, "INPUTS": eight_bit.LOADS[rows][0], "KIND": tl.bfloat16}
    attributes = {(index,): [["tt.divisibility", 16]] for index in (0, 1, 2, 3, 4, 6, 7)}
    return {"capability": capability, "weight": weight, "rows": rows} | compiled(
        eight_bit._product, signature, constants, attributes, capability,
        {"num_warps": 4, "num_stages": eight_bit.LOADS[rows][1]})


def compiled(kernel: Any, signature: dict[str, str], constants: dict[str, Any], attributes: dict[Any, Any],
             capability: int, options: dict[str, int]) -> dict[str, object]:
    """The bytes of its code, and those of shared memory that it asks for."""
    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {"cubin_bytes": len(made.asm["cubin"]), "shared_bytes": made.metadata.shared}


if __name__ == "__main__":
    json.dump([compiled_attention(capability, ring, width) for capability in CAPABILITIES
               for ring, width in (("*bf16", 128), ("*i8", 129))]
              + [compiled_product(capability, weight, rows) for capability in CAPABILITIES
                 for rows in eight_bit.LOADS
                 for weight in ("*i8", "*fp8e4nv") if capability >= 89 or weight == "*i8"], sys.stdout)
