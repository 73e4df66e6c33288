"""Where a command computes when it is not told."""

from __future__ import annotations

import torch

from bebop.errors import UserError
from bebop.models.policy import recommended_dtype


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
