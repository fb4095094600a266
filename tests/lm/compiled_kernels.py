"""`python -m tests.lm.compiled_kernels`: compiles the GPU's kernels for GPUs that are not here, as a step of the 7 B
model in bfloat16 needs them.

Prints one JSON line: of each compute capability and kernel the size of what came out.
"""

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.lm import decode_attention, eight_bit, fused_kernels, sampler

# A100, A10, L4 and L40S, H100 and H200, B200.
CAPABILITIES = (80, 86, 89, 90, 100)


def compiled_attention(capability: int, ring: str, width: int) -> dict[str, object]:
    """Of the 7 B model's shape."""
    signature = {"heads": "*bf16", "ring": ring, "positions": "*i64", "rotation": "*fp32", "sums": "*fp32",
                 "marks": "*fp32", "slots": "i32", "kv_heads": "i32", "context": "i32"}
    constants = {"TURN": True, "PARTS": 4, "GROUPS": 1, "GROUPS_UP": 1, "DIM": 128, "DIM_UP": 128, "WIDTH": width,
                 "INT8": ring == "*i8", "BLOCK": decode_attention.BLOCK}
    attributes = {(index,): [["tt.divisibility", 16]] for index in range(6)}
    return {"capability": capability, "ring": ring} | compiled(
        decode_attention._attend_part, signature, constants, attributes, capability, {"num_warps": 4})


def compiled_product(capability: int, weight: str, rows: int) -> dict[str, object]:
    """Of a layer's largest product."""
    signature = {"x": "*bf16", "weight": weight, "scale": "*bf16", "residual": "*fp32", "answer": "*fp32",
                 "n": "i32", "outputs": "i32", "inputs": "i32"}
    constants = {"ADD": True, "ROWS": rows, "OUTPUTS": 64, "INPUTS": eight_bit.LOADS[rows][0], "KIND": tl.bfloat16}
    attributes = {(index,): [["tt.divisibility", 16]] for index in (0, 1, 2, 3, 4, 6, 7)}
    return {"capability": capability, "weight": weight, "rows": rows} | compiled(
        eight_bit._product, signature, constants, attributes, capability,
        {"num_warps": 4, "num_stages": eight_bit.LOADS[rows][1]})


def compiled_between(capability: int) -> list[dict[str, object]]:
    """What lies between the products; the text's draw has the widest rows."""
    norm = {"DIM": 4096, "DIM_UP": 4096}
    hashed = {"GAMMA": sampler._GAMMA, "MIX_1": sampler._MIX_1, "MIX_2": sampler._MIX_2, "WINDOWS": sampler.WINDOWS}
    kernels: list[tuple[Any, dict[str, str], dict[str, Any], int]] = [
        (fused_kernels._embed, {"tokens": "*i64", "offsets": "*i64", "table": "*bf16", "floor": "*fp32", "x": "*fp32",
                                "normed": "*bf16"}, {"STREAMS": 17, **norm}, 4096),
        (fused_kernels._add_norm, {"x": "*fp32", "stride": "i32", "update": "*bf16", "at": "*i64", "floor": "*fp32",
                                   "total": "*fp32", "normed": "*bf16"}, {"AT": True, "NORM": True, **norm}, 4096),
        (fused_kernels._gate, {"both": "*bf16", "answer": "*bf16", "dim": "i32"}, {"BLOCK": 1024}, 1024),
        (fused_kernels._depth_attend, {"heads": "*bf16", "past": "*fp32", "answer": "*bf16", "position": "i32",
                                       "later": "i32"},
         {"POSITIONS": 8, "POSITIONS_UP": 8, "DIM": 64, "DIM_UP": 64}, 64)]
    kernels += [(fused_kernels._draw, {"logits": "*bf16", "logits_stride": "i32", "table": "*fp32", "seeds": "*i64",
                                       "positions": "*i64", "temperatures": "*fp32", "temperature_stride": "i32",
                                       "top_ks": "*i64", "top_k_stride": "i32", "token": "*i64", "stream": "i32"},
                 {"ENTRIES": entries, "ENTRIES_UP": width, **hashed}, width)
                for entries, width in ((32_000, 32_768), (2048, 2048))]
    return [{"capability": capability, "kernel": kernel.fn.__name__} | compiled(
        kernel, signature, constants, {}, capability, {"num_warps": fused_kernels._warps(width)})
        for kernel, signature, constants, width in kernels]


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
                 for weight in ("*i8", "*fp8e4nv") if capability >= 89 or weight == "*i8"]
              + [made for capability in CAPABILITIES for made in compiled_between(capability)], sys.stdout)
