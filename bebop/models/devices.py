"""Which number format a device computes in fast."""

from __future__ import annotations

from pathlib import Path

import torch


def recommended_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies matrices in it, else float32.

    A CPU without AMX or AVX-512-BF16 emulates bfloat16 products and is slower by one to two orders of magnitude.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    return torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    if torch.cpu._is_amx_tile_supported():
        return True
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split() if cpuinfo.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
