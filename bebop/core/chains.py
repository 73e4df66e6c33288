"""The head's loss on hidden states: its inputs and outputs, and the plain version that materialises every logit.

``plain_loss`` is the reference; ``core.fused.fused_loss`` takes the same arguments and never holds [N K, V]. Logits are
linear in the states, so a temperature that differs by request, or a draft temperature per depth, is a division of the
states before either is called; ``TemperatureMixture`` compares one set of states at several temperatures.

Shapes: N chains, K draft depths, H hidden size, P target positions, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bebop.core.objectives import Objective, counted_depths
from bebop.core.statistics import DraftStatistics, at_least_float32, draft_statistics


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftChains:
    """What the unrolled head and the frozen backbone hand to the loss. Only ``draft_states_NKH`` gets a gradient."""

    draft_states_NKH: Tensor
    """The head's outputs that enter lm_head, depth 1 to K."""
    target_states_PH: Tensor
    """The backbone's hidden states after its final norm, once per position of the batch."""
    positions_NK: Tensor
    """Row of ``target_states_PH`` whose law depth k is compared with; shared by all depths that predict its token."""
    tokens_NK: Tensor
    """The token that the target sampled there."""
    depth_mask_NK: Tensor | None = None
    """True where the depth's tokens lie in one document and its token in the loss mask; None = everywhere."""

    def __post_init__(self) -> None:
        if self.draft_states_NKH.ndim != 3:
            raise ValueError(f"draft states must be [N, K, H], got {tuple(self.draft_states_NKH.shape)}")
        num_chains, num_depths, hidden = self.draft_states_NKH.shape
        if self.target_states_PH.ndim != 2 or self.target_states_PH.shape[1] != hidden:
            raise ValueError(f"target states must be [P, {hidden}], got {tuple(self.target_states_PH.shape)}")
        for name in ("positions_NK", "tokens_NK", "depth_mask_NK"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (num_chains, num_depths):
                raise ValueError(f"{name} must be [{num_chains}, {num_depths}], got {tuple(value.shape)}")

    @property
    def counted_NK(self) -> Tensor:
        return counted_depths(self.tokens_NK, self.depth_mask_NK)


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureMixture:
    """Sampling temperatures at which the same logits are compared; the losses are averaged with these weights."""

    temperatures: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] | None = None
    """Relative weights, one per temperature; None = equal."""

    def __post_init__(self) -> None:
        if not self.temperatures or not all(t > 0 and math.isfinite(t) for t in self.temperatures):
            raise ValueError(f"temperatures must be one or more numbers above 0, got {self.temperatures}")
        if self.weights is not None and len(self.weights) != len(self.temperatures):
            raise ValueError(f"{len(self.temperatures)} temperatures need as many weights, got {self.weights}")
        if self.weights is not None and not (min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf):
            raise ValueError(f"temperature weights must be at least 0 with a positive sum, got {self.weights}")

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, summing to 1."""
        weights = self.weights or (1.0,) * len(self.temperatures)
        return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainLoss:
    """The loss of a batch and what it saw."""

    loss_N: Tensor
    """One value per chain; ``K * loss_N.sum() / counted_NK.sum()`` is the mean per row."""
    statistics: tuple[DraftStatistics, ...]
    """One record per temperature, detached; meaningless where ``counted_NK`` is False."""
    counted_NK: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean per counted row (scalar); 0 if there is none."""
        num_depths = self.counted_NK.shape[-1]
        return num_depths * self.loss_N.sum() / self.counted_NK.sum().clamp(min=1)


SINGLE_TEMPERATURE = TemperatureMixture()


def plain_loss(
    chains: DraftChains,
    head_weight_VH: Tensor,
    objective: Objective,
    mixture: TemperatureMixture = SINGLE_TEMPERATURE,
) -> ChainLoss:
    """Every logit at once: target logits once per position, float32 or better from the logits on."""
    check_head_weight(chains, head_weight_VH)
    weight_VH = head_weight_VH.detach()
    counted_NK = chains.counted_NK
    position_NK = chains.positions_NK.where(counted_NK, 0)
    token_NK = chains.tokens_NK.where(counted_NK, 0)
    target_logits_NKV = at_least_float32(chains.target_states_PH.detach() @ weight_VH.T)[position_NK]
    draft_logits_NKV = at_least_float32(chains.draft_states_NKH @ weight_VH.T)
    loss_N = torch.zeros(len(token_NK), dtype=draft_logits_NKV.dtype, device=draft_logits_NKV.device)
    seen = []
    for temperature, share in zip(mixture.temperatures, mixture.shares, strict=True):
        statistics = draft_statistics(target_logits_NKV / temperature, draft_logits_NKV / temperature, token_NK)
        loss_N = loss_N + share * objective.loss(statistics, counted_NK)
        seen.append(statistics.map(Tensor.detach))
    return ChainLoss(loss_N=loss_N, statistics=tuple(seen), counted_NK=counted_NK)


def check_head_weight(chains: DraftChains, head_weight_VH: Tensor) -> None:
    """Raise ValueError unless the lm_head's weight fits the states."""
    hidden = chains.draft_states_NKH.shape[-1]
    if head_weight_VH.ndim != 2 or head_weight_VH.shape[1] != hidden:
        raise ValueError(f"the lm_head weight must be [V, {hidden}], got {tuple(head_weight_VH.shape)}")
    dtypes = {chains.draft_states_NKH.dtype, chains.target_states_PH.dtype, head_weight_VH.dtype}
    if len(dtypes) != 1:
        raise ValueError(f"draft states, target states and lm_head weight must have one dtype, got {dtypes}; cast them")
