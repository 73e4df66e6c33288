"""Rotary angles by position, computed once per position instead of once per forward.

Legend: B rows, T positions of a row, P positions of the table, D rotary size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bebop.engines.embedded.lean import Angles, make_angles
from bebop.errors import UserError


class Rotary:
    """A growing table over an architecture's own rotary module."""

    def __init__(self, module: nn.Module, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        rope_type = getattr(module, "rope_type", "default")
        if rope_type in ("dynamic", "longrope"):
            raise UserError(
                f"rotary type {rope_type!r} changes with a row's length; use another engine for this policy"
            )
        self._module: Any = module
        self._head_dim = head_dim
        self._like = torch.empty(0, dtype=dtype, device=device)
        self._cos_PD = self._sin_PD = torch.empty(0, 0, device=device)
        self._lean: Angles | None = None

    def reserve(self, num_positions: int) -> None:
        """Angles for positions 0..num_positions-1."""
        if num_positions > self._cos_PD.shape[0]:
            cos_1PD, sin_1PD = self._module(self._like, torch.arange(num_positions, device=self._like.device)[None])
            self._cos_PD, self._sin_PD = cos_1PD[0].contiguous(), sin_1PD[0].contiguous()
            self._lean = make_angles(self._cos_PD, self._sin_PD, self._head_dim)

    def at(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] cosines and sines, as transformers' layers take them."""
        return self._cos_PD[positions_BT], self._sin_PD[positions_BT]

    def lean_at(self, positions_BT: Tensor) -> Angles:
        """As lean layers take them."""
        assert self._lean is not None, "reserve comes first"
        return self._lean.at(positions_BT.reshape(-1))
