"""Which chains of a batch are learned: anchors, and the depths of each that count.

Depth k of the chain anchored at i reads tokens up to i + k and predicts token i + k + 1. It counts where all of these
are of one sequence, the predicted token is the policy's own, and every shallower depth counts too.

Shapes: B rows, T tokens, A anchors of the row that has most, K depths, N chains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with

from bebop.training.transcripts import TokenBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainPlan:
    """The chains of a batch. Rows with fewer anchors than A are filled up with anchors at 0 that are not real."""

    tokens_BT: Tensor
    anchors_BA: Tensor
    """int64, increasing where real."""
    is_real_BA: Tensor
    depth_mask_BAK: Tensor
    """bool; False everywhere where the anchor is not real."""
    starts_BT: Tensor | None = None
    """As in ``TokenBatch``."""

    @property
    def num_depths(self) -> int:
        return self.depth_mask_BAK.shape[-1]

    @property
    def num_counted(self) -> int:
        """(chain, depth) pairs that count."""
        return int(self.depth_mask_BAK.sum())

    def tokens_after(self, offset: int) -> Tensor:
        """Token at ``anchor + offset`` [B, A]; the row's last position stands in for those beyond it."""
        return self.tokens_BT.gather(1, (self.anchors_BA + offset).clamp(max=self.tokens_BT.shape[1] - 1))

    @property
    def starts_BA(self) -> Tensor | int:
        """Where in its row each anchor's sequence begins."""
        return 0 if self.starts_BT is None else self.starts_BT.gather(1, self.anchors_BA)

    @property
    def labels_NK(self) -> Tensor:
        """The token that each depth predicts."""
        return torch.stack([self.tokens_after(depth + 1) for depth in self._depths], -1)[self.is_real_BA]

    @property
    def positions_NK(self) -> Tensor:
        """Where the backbone says the law of that token, as a row of the flattened [B T]."""
        num_rows, num_tokens = self.tokens_BT.shape
        row_starts_B1 = torch.arange(num_rows, device=self.tokens_BT.device)[:, None] * num_tokens
        at_depth = [row_starts_B1 + (self.anchors_BA + depth).clamp(max=num_tokens - 1) for depth in self._depths]
        return torch.stack(at_depth, -1)[self.is_real_BA]

    @property
    def depth_mask_NK(self) -> Tensor:
        return self.depth_mask_BAK[self.is_real_BA]

    @property
    def _depths(self) -> range:
        return range(1, self.num_depths + 1)


def plan_chains(batch: TokenBatch, num_depths: int) -> ChainPlan:
    """Every chain with at least one depth that counts."""
    num_rows = batch.tokens_BT.shape[0]
    counted_BTK = counted_everywhere(batch, num_depths)
    is_anchor_BT = counted_BTK[..., 0]
    num_anchors = max(1, int(is_anchor_BT.sum(1).max()))
    # A stable sort puts the anchors first and keeps their order.
    anchors_BA = (~is_anchor_BT).to(torch.uint8).sort(dim=1, stable=True).indices[:, :num_anchors]
    is_real_BA = is_anchor_BT.gather(1, anchors_BA)
    anchors_BA = anchors_BA.where(is_real_BA, 0)
    rows_B1 = torch.arange(num_rows, device=batch.tokens_BT.device)[:, None]
    return ChainPlan(
        tokens_BT=batch.tokens_BT,
        anchors_BA=anchors_BA,
        is_real_BA=is_real_BA,
        depth_mask_BAK=counted_BTK[rows_B1, anchors_BA] & is_real_BA[..., None],
        starts_BT=batch.starts_BT,
    )


def counted_everywhere(batch: TokenBatch, num_depths: int) -> Tensor:
    """bool [B, T, K]: which depths count of a chain anchored at each position."""
    num_tokens = batch.tokens_BT.shape[1]
    # Padding is nobody's token, so the end of a row needs no care of its own.
    is_target_BT = pad_with(batch.is_target_BT, (0, num_depths + 1))
    offsets = range(2, num_depths + 2)
    is_target_BTK = torch.stack([is_target_BT[:, offset : offset + num_tokens] for offset in offsets], -1)
    if batch.starts_BT is not None:
        starts_BT = pad_with(batch.starts_BT, (0, num_depths + 1), value=-1)
        starts_BTK = torch.stack([starts_BT[:, offset : offset + num_tokens] for offset in offsets], -1)
        is_target_BTK = is_target_BTK & (starts_BTK == batch.starts_BT[..., None])
    return is_target_BTK.int().cumprod(-1).bool()


def spread_to_every_position(plan: ChainPlan) -> ChainPlan:
    """The same chains with an anchor at every position but the last; the added ones are not real."""
    num_rows, num_tokens = plan.tokens_BT.shape
    shape = (num_rows, num_tokens - 1)
    is_real_BT = torch.zeros(shape, dtype=torch.bool, device=plan.tokens_BT.device)
    mask_BTK = torch.zeros(*shape, plan.num_depths, dtype=torch.bool, device=plan.tokens_BT.device)
    row_N, place_N = plan.is_real_BA.nonzero(as_tuple=True)
    anchor_N = plan.anchors_BA[row_N, place_N]
    is_real_BT[row_N, anchor_N] = True
    mask_BTK[row_N, anchor_N] = plan.depth_mask_NK
    everywhere_BT = torch.arange(num_tokens - 1, device=plan.tokens_BT.device).expand(shape)
    return ChainPlan(
        tokens_BT=plan.tokens_BT,
        anchors_BA=everywhere_BT,
        is_real_BA=is_real_BT,
        depth_mask_BAK=mask_BTK,
        starts_BT=plan.starts_BT,
    )
