"""The MTP head in few operations: ``MTPHead.forward`` over the engine's caches with lean norms and a lean layer.

The head has one layer, so its keys and values depend on what enters it alone: positions that nothing is drafted from
leave them in the cache and go no further.

Legend: B rows, T positions of a row, N = B T, M positions whose output is wanted, H hidden size, G key heads, D head
size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bebop.engines.embedded.cache import PrefillCache, SlotCache
from bebop.engines.embedded.draft_head import HeadInput
from bebop.engines.embedded.lean import LeanLayer, LeanNorm, lean_norm
from bebop.engines.embedded.matrices import Matrix
from bebop.engines.embedded.rotary import Rotary
from bebop.models.head import HeadState, MTPHead

Norm = Callable[[Tensor], Tensor]


class LeanHead:
    """A ``draft_head.DraftHead`` with the mathematics of the head it is made from."""

    def __init__(self, head: MTPHead, dtype: torch.dtype, device: torch.device) -> None:
        self._head = head
        self._dtype = dtype
        self._fuse = Matrix(head.fuse)
        self._layer = LeanLayer(head.layer, 0)
        norms = (head.embedding_norm, head.hidden_norm, head.output_norm)
        self._embedding_norm, self._hidden_norm, self._output_norm = (lean_norm(m, dtype) or m for m in norms)
        head_dim = head.layer.self_attn.head_dim
        self._rotary = Rotary(head.rotary, head_dim, dtype, device)

    def refresh(self) -> None:
        for part in (self._fuse, self._layer, self._embedding_norm, self._hidden_norm, self._output_norm):
            if isinstance(part, Matrix | LeanLayer | LeanNorm):
                part.refresh()

    def __call__(self, inputs: HeadInput, mask: Tensor, cache: SlotCache, last_M: Tensor | None = None) -> HeadState:
        fused_NH = self._fused(inputs, cache.capacity)
        layer_MH = self._layer(fused_NH, self._rotary.lean_at(inputs.positions_BT), mask, cache, last_M)
        layer_MH = layer_MH.to(self._dtype)
        output_MH = self._output_norm(layer_MH)
        recycle_MH = output_MH if self._head.contract.recycle == "post" else layer_MH
        return HeadState(output_BTH=output_MH[:, None], recycle_BTH=recycle_MH[:, None])

    def remember(self, inputs: HeadInput, num_positions: int, cache: SlotCache | PrefillCache) -> None:
        fused_NH = self._fused(inputs, num_positions)
        angles = self._rotary.lean_at(inputs.positions_BT)
        _, _, key_NGD, value_NGD = self._layer.heads(fused_NH, angles)
        shape = inputs.positions_BT.shape
        key_BGTD, value_BGTD = (x.unflatten(0, shape).transpose(1, 2) for x in (key_NGD, value_NGD))
        cache.update(key_BGTD, value_BGTD, 0)

    def _fused(self, inputs: HeadInput, num_positions: int) -> Tensor:
        """What enters the layer, [N, H]; positions are below ``num_positions``."""
        contract = self._head.contract
        self._rotary.reserve(num_positions)
        embeds_BTH = inputs.token_embeds_BTH
        if contract.zero_embedding_at_position_0:
            embeds_BTH = embeds_BTH.masked_fill((inputs.positions_BT == 0)[..., None], 0.0)
        pair = [self._embedding_norm(embeds_BTH), self._hidden_norm(inputs.hidden_BTH)]
        if contract.concat_order == "hidden_first":
            pair.reverse()
        return self._fuse(torch.cat(pair, dim=-1).flatten(0, 1))
