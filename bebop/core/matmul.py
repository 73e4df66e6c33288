"""Products with the frozen lm_head that accumulate in float32 whatever the storage type.

Shapes: X rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDENED_COLUMNS = 8192
"""Columns of a half-precision weight widened at a time where the device has no mixed product."""


def project_logits(states_XH: Tensor, weight_VH: Tensor) -> Tensor:
    """-> logits [X, V], float32 (float64 from float64)."""
    if _is_wide(weight_VH):
        return states_XH @ weight_VH.T
    if weight_VH.is_cuda:
        return torch.mm(states_XH, weight_VH.T, out_dtype=torch.float32)
    wide_XH = states_XH.float()
    logits_XV = wide_XH.new_empty(len(states_XH), len(weight_VH))
    for start in range(0, len(weight_VH), WIDENED_COLUMNS):
        columns = slice(start, start + WIDENED_COLUMNS)
        logits_XV[:, columns] = wide_XH @ weight_VH[columns].float().T
    return logits_XV


def project_states(logit_gradient_XV: Tensor, weight_VH: Tensor) -> Tensor:
    """-> gradient of the states [X, H], float32 (float64 from float64).

    On a GPU with a half-precision weight the logit gradient is rounded to that type first, as autograd would.
    """
    if _is_wide(weight_VH):
        return logit_gradient_XV @ weight_VH
    if weight_VH.is_cuda:
        return torch.mm(logit_gradient_XV.to(weight_VH.dtype), weight_VH, out_dtype=torch.float32)
    total_XH = logit_gradient_XV.new_zeros(len(logit_gradient_XV), weight_VH.shape[1])
    for start in range(0, len(weight_VH), WIDENED_COLUMNS):
        columns = slice(start, start + WIDENED_COLUMNS)
        total_XH.addmm_(logit_gradient_XV[:, columns], weight_VH[columns].float())
    return total_XH


def _is_wide(values: Tensor) -> bool:
    return values.dtype in (torch.float32, torch.float64)
