"""Where to compute and in which number format, when a setting does not say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from bebop.errors import UserError


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


@cache
def _cpu_multiplies_bfloat16() -> bool:
    if torch.cpu._is_amx_tile_supported():
        return True
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split() if cpuinfo.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(name: str) -> torch.device:
    """The device of a setting: ``auto`` is a GPU where there is one."""
    try:
        return default_device() if name == "auto" else torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is none PyTorch knows; write auto, cpu or cuda") from error


def chosen_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a setting: ``auto`` is what ``device`` multiplies fastest."""
    choices = {"auto": recommended_dtype(device), "float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in choices:
        raise UserError(f"dtype {name!r} is unknown; write one of {', '.join(choices)}")
    return choices[name]
