"""Compile the Triton kernels of the fused loss for a GPU generation, with or without such a GPU at hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bebop.core import fused_triton

FLOATS, INDICES, COUNT, FACTOR = "*fp32", "*i64", "i32", "fp32"
# What each parameter of the kernels is given; block sizes and flags are listed per kernel below.
TYPES = {
    "logits_ptr": FLOATS,
    "lse_ptr": FLOATS,
    "target_ptr": FLOATS,
    "draft_ptr": FLOATS,
    "out_ptr": FLOATS,
    "sums_ptr": FLOATS,
    "target_lse_ptr": FLOATS,
    "draft_lse_ptr": FLOATS,
    "coefficient_ptr": FLOATS,
    "inverse_ptr": FLOATS,
    "target_row_ptr": INDICES,
    "token_ptr": INDICES,
    "num_rows": COUNT,
    "num_columns": COUNT,
    "num_targets": COUNT,
    "inverse_temperature": FACTOR,
}
WARP_SIZE = 32


def build_kernels(capability: int, num_terms: int = 1) -> list[dict[str, Any]]:
    """Compile every kernel to machine code for ``capability`` (80, 90, ...); -> name, code sizes, shared memory.

    Raises triton's CompilationError where a kernel does not compile.
    """
    kernels = fused_triton.TritonKernels()
    gradient = {"NUM_TERMS": num_terms, "USES_TARGET": True, "BLOCK": kernels.gradient_block}
    constants = {
        fused_triton.log_sum_exp_kernel: {"BLOCK": kernels.statistics_block},
        fused_triton.statistics_kernel: {"BLOCK": kernels.statistics_block},
        fused_triton.gradient_kernel: gradient,
    }
    built = []
    for kernel, given in constants.items():
        signature = {name: "constexpr" if name in given else TYPES[name] for name in kernel.arg_names}
        compiled = compile_kernel(
            ASTSource(fn=kernel, signature=signature, constexprs=given),
            target=GPUTarget("cuda", capability, WARP_SIZE),
            options={"num_warps": kernels.num_warps},
        )
        sizes = {f"{stage}_bytes": len(compiled.asm[stage]) for stage in ("ptx", "cubin")}
        built.append({"kernel": kernel.__name__, "shared_bytes": compiled.metadata.shared, **sizes})
    return built


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m bebop.bench.triton_build --capability 90 --json FILE``: compile and write what was built."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.json.write_text(json.dumps(build_kernels(options.capability), indent=2) + "\n")


if __name__ == "__main__":
    main()
