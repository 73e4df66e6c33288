"""What a drafter asks of a head: ``lean_head`` does it in few operations, ``module_head`` by the head's own modules.

Legend: B rows, T positions of a row, M positions whose output is wanted, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from bebop.engines.embedded.cache import PrefillCache, SlotCache
from bebop.models.head import HeadState


class HeadInput(NamedTuple):
    """What ``MTPHead.forward`` takes at every position of a depth."""

    hidden_BTH: Tensor
    token_embeds_BTH: Tensor
    positions_BT: Tensor


class DraftHead(Protocol):
    """``MTPHead`` over the engine's caches."""

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        ...

    def __call__(self, inputs: HeadInput, mask: Tensor, cache: SlotCache, last_M: Tensor | None = None) -> HeadState:
        """One draft depth: keys and values of every position, and the output [M, 1, H] of ``last_M``, an index into the
        B T positions (None = all); ``mask`` is ``additive_mask``'s for those M."""
        ...

    def remember(self, inputs: HeadInput, num_positions: int, cache: SlotCache | PrefillCache) -> None:
        """Leave the keys and values of every position, all below ``num_positions``, in the cache."""
        ...
