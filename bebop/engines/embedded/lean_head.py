"""The MTP head in few operations: ``MTPHead.forward`` over a ``SlotCache`` with lean norms and a lean layer.

Legend: B rows, T positions of a row, N = B T, H hidden size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bebop.engines.embedded.cache import SlotCache
from bebop.engines.embedded.lean import LeanLayer, LeanNorm, can_be_lean, lean_norm
from bebop.engines.embedded.rotary import Rotary
from bebop.models.head import HeadState, MTPHead

Norm = Callable[[Tensor], Tensor]


class LeanHead:
    """Same mathematics and arguments as the head it is made from."""

    def __init__(self, head: MTPHead, dtype: torch.dtype, device: torch.device) -> None:
        self._head = head
        self._layer = LeanLayer(head.layer, 0)
        norms = (head.embedding_norm, head.hidden_norm, head.output_norm)
        self._embedding_norm, self._hidden_norm, self._output_norm = (lean_norm(m, dtype) or m for m in norms)
        head_dim = head.layer.self_attn.head_dim
        self._rotary = Rotary(head.rotary, head_dim, dtype, device)

    def refresh(self) -> None:
        """Take over the norms' weights as they are now."""
        for part in (self._layer, self._embedding_norm, self._hidden_norm, self._output_norm):
            if isinstance(part, LeanLayer | LeanNorm):
                part.refresh()

    def __call__(
        self, hidden_BTH: Tensor, token_embeds_BTH: Tensor, positions_BT: Tensor, mask: Tensor, cache: SlotCache
    ) -> HeadState:
        """One draft depth for every position; ``mask`` is ``additive_mask``'s."""
        contract = self._head.contract
        self._rotary.reserve(cache.capacity)
        if contract.zero_embedding_at_position_0:
            token_embeds_BTH = token_embeds_BTH.masked_fill((positions_BT == 0)[..., None], 0.0)
        pair = [self._embedding_norm(token_embeds_BTH), self._hidden_norm(hidden_BTH)]
        if contract.concat_order == "hidden_first":
            pair.reverse()
        fused_NH = F.linear(torch.cat(pair, dim=-1).flatten(0, 1), self._head.fuse.weight)
        layer_NH = self._layer(fused_NH, self._rotary.lean_at(positions_BT), mask, cache)
        output_BTH = self._output_norm(layer_NH).view(hidden_BTH.shape)
        recycle_BTH = output_BTH if contract.recycle == "post" else layer_NH.view(hidden_BTH.shape)
        return HeadState(output_BTH=output_BTH, recycle_BTH=recycle_BTH)


def make_lean_head(head: nn.Module, dtype: torch.dtype, device: torch.device) -> LeanHead | None:
    """The lean form of a head, where its layer has one."""
    if isinstance(head, MTPHead) and can_be_lean(head.layer, dtype):
        return LeanHead(head, dtype, device)
    return None
