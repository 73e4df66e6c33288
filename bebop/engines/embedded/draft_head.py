"""How a drafter runs the head: by lean operations where its layer has them, else by its own modules, the reference.

Legend: B rows, T positions of a row, M positions whose output is wanted.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bebop.engines.embedded.attention import additive_mask
from bebop.engines.embedded.cache import PrefillCache, SlotCache
from bebop.engines.embedded.lean import can_be_lean
from bebop.engines.embedded.lean_head import LeanHead
from bebop.models.head import HeadState, MTPHead


class DraftHead(Protocol):
    """``MTPHead`` over the engine's caches."""

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        ...

    def __call__(
        self,
        hidden_BTH: Tensor,
        token_embeds_BTH: Tensor,
        positions_BT: Tensor,
        mask: Tensor,
        cache: SlotCache,
        last_M: Tensor | None = None,
    ) -> HeadState:
        """One draft depth: keys and values of every position, and the output [M, 1, H] of ``last_M``, an index into the
        B T positions (None = all); ``mask`` is ``additive_mask``'s for those M."""
        ...

    def remember(
        self,
        hidden_BTH: Tensor,
        token_embeds_BTH: Tensor,
        positions_BT: Tensor,
        num_positions: int,
        cache: SlotCache | PrefillCache,
    ) -> None:
        """Leave the keys and values of every position, all below ``num_positions``, in the cache."""
        ...


class ModuleHead:
    """The head's own modules, which run every position to its end."""

    def __init__(self, head: MTPHead, dtype: torch.dtype) -> None:
        self._head = head
        self._dtype = dtype
        self._num_groups = head.config.num_attention_heads // head.config.num_key_value_heads

    def refresh(self) -> None:
        """Nothing is copied."""

    def __call__(
        self,
        hidden_BTH: Tensor,
        token_embeds_BTH: Tensor,
        positions_BT: Tensor,
        mask: Tensor,
        cache: SlotCache,
        last_M: Tensor | None = None,
    ) -> HeadState:
        if last_M is None:
            return self._head(hidden_BTH, token_embeds_BTH, positions_BT, attention_mask=mask, cache=cache)
        state = self._everywhere(hidden_BTH, token_embeds_BTH, positions_BT, cache)
        output_M1H, recycle_M1H = (x.flatten(0, 1)[last_M, None] for x in (state.output_BTH, state.recycle_BTH))
        return HeadState(output_BTH=output_M1H, recycle_BTH=recycle_M1H)

    def remember(
        self,
        hidden_BTH: Tensor,
        token_embeds_BTH: Tensor,
        positions_BT: Tensor,
        num_positions: int,
        cache: SlotCache | PrefillCache,
    ) -> None:
        if isinstance(cache, SlotCache):
            self._everywhere(hidden_BTH, token_embeds_BTH, positions_BT, cache)
        else:
            self._head(hidden_BTH, token_embeds_BTH, positions_BT, cache=cache)

    def _everywhere(
        self, hidden_BTH: Tensor, token_embeds_BTH: Tensor, positions_BT: Tensor, cache: SlotCache
    ) -> HeadState:
        mask = additive_mask(positions_BT, cache.num_keys, self._num_groups, self._dtype)
        return self._head(hidden_BTH, token_embeds_BTH, positions_BT, attention_mask=mask, cache=cache)


def make_draft_head(head: MTPHead, dtype: torch.dtype, device: torch.device, *, lean: bool) -> DraftHead:
    if lean and isinstance(head, MTPHead) and can_be_lean(head.layer, dtype):
        return LeanHead(head, dtype, device)
    return ModuleHead(head, dtype)
