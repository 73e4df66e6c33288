"""The head's own modules as a ``draft_head.DraftHead``: they run every position to its end. The reference.

Legend: B rows, T positions of a row, M positions whose output is wanted, H hidden size.
"""

import torch
from torch import Tensor

from bebop.engines.embedded.attention import additive_mask
from bebop.engines.embedded.cache import PrefillCache, SlotCache
from bebop.engines.embedded.draft_head import HeadInput
from bebop.models.head import HeadState, MTPHead


class ModuleHead:
    """For heads whose layer has no lean form, and to compare lean ones with."""

    def __init__(self, head: MTPHead, dtype: torch.dtype) -> None:
        self._head = head
        self._dtype = dtype
        self._num_groups = head.config.num_attention_heads // head.config.num_key_value_heads

    def refresh(self) -> None:
        """Nothing is copied."""

    def __call__(self, inputs: HeadInput, mask: Tensor, cache: SlotCache, last_M: Tensor | None = None) -> HeadState:
        if last_M is None:
            return self._head(*inputs, attention_mask=mask, cache=cache)
        state = self._everywhere(inputs, cache)
        output_M1H, recycle_M1H = (x.flatten(0, 1)[last_M, None] for x in (state.output_BTH, state.recycle_BTH))
        return HeadState(output_BTH=output_M1H, recycle_BTH=recycle_M1H)

    def remember(self, inputs: HeadInput, num_positions: int, cache: SlotCache | PrefillCache) -> None:
        del num_positions
        if isinstance(cache, SlotCache):
            self._everywhere(inputs, cache)
        else:
            self._head(*inputs, cache=cache)

    def _everywhere(self, inputs: HeadInput, cache: SlotCache) -> HeadState:
        mask = additive_mask(inputs.positions_BT, cache.num_keys, self._num_groups, self._dtype)
        return self._head(*inputs, attention_mask=mask, cache=cache)
