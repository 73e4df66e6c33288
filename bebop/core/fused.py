"""The head's loss and its gradient in one sweep over tiles of whole chains, never holding [N K, V].

The composition (``core.objectives``) couples only the depths of one chain, and the lm_head is frozen. So a tile of
whole chains can finish its work at once: logits of its rows and of the distinct target positions they share, row
statistics, upstream gradient of each statistic by autograd over [C, K] numbers, logit gradient, gradient of the states.
The backward pass only scales. Matrix products per row: two for the draft and, where the depths share positions, about
1/K of one for the target, as in the plain version; nothing is recomputed.

An objective whose weights depend on the mean overlap of the whole batch (``lk_lambda``) keeps one state gradient per
such weight and blends them at the end: one more product each.

Shapes: N chains, K draft depths, H hidden size, P target positions, V vocabulary; in a tile: C chains, R counted rows,
U distinct target positions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bebop.core.chains import SINGLE_TEMPERATURE, ChainLoss, DraftChains, TemperatureMixture, check_head_weight
from bebop.core.fused_rows import ChunkedKernels, GradientTerm, RowKernels, RowStatistics, TileLogits
from bebop.core.matmul import project_logits, project_states
from bebop.core.objectives import Guide, Objective, Part, mean_overlap
from bebop.core.statistics import DraftStatistics


@dataclass(frozen=True, kw_only=True, slots=True)
class Fusion:
    """How the sweep is done: changes cost, not the result."""

    logits_bytes: int = 128 * 2**20
    """Bound on the target and draft logits held at once; a single chain is held whatever its size."""
    kernels: RowKernels = field(default_factory=ChunkedKernels)

    def __post_init__(self) -> None:
        if self.logits_bytes < 1:
            raise ValueError(f"logits_bytes must be at least 1, got {self.logits_bytes}")


DEFAULT_FUSION = Fusion()


def fusion_for(device: torch.device) -> Fusion:
    """The fastest sweep a device has: Triton kernels over 1 GiB of logits on a GPU, else the default."""
    if device.type != "cuda":
        return DEFAULT_FUSION
    if importlib.util.find_spec("triton") is None:
        return Fusion(logits_bytes=2**30, kernels=ChunkedKernels(vocabulary_tile=2**16))
    from bebop.core.fused_triton import TritonKernels

    return Fusion(logits_bytes=2**30, kernels=TritonKernels())


def fused_loss(
    chains: DraftChains,
    head_weight_VH: Tensor,
    objective: Objective,
    mixture: TemperatureMixture = SINGLE_TEMPERATURE,
    fusion: Fusion = DEFAULT_FUSION,
) -> ChainLoss:
    """``plain_loss`` without its memory: same arguments, value and gradient (to the draft states only)."""
    check_head_weight(chains, head_weight_VH)
    wants_gradient = torch.is_grad_enabled() and chains.draft_states_NKH.requires_grad
    counted_NK = chains.counted_NK
    with torch.no_grad(), torch.autocast(head_weight_VH.device.type, enabled=False):
        seen = _empty_statistics(chains, len(mixture.temperatures))
        groups = _groups(objective, chains, mixture) if wants_gradient else ()
        for tile in _tiles(chains, head_weight_VH, groups, fusion):
            _sweep(tile, head_weight_VH, mixture, fusion.kernels, seen, groups)
        loss_N = torch.stack(
            [
                share * objective.loss(statistics, counted_NK)
                for share, statistics in zip(mixture.shares, seen, strict=True)
            ]
        ).sum(0)
        gradient_NKH = _blend(groups, seen, counted_NK)
    if gradient_NKH is not None:
        loss_N = _WithStateGradient.apply(
            chains.draft_states_NKH, loss_N, gradient_NKH.to(chains.draft_states_NKH.dtype)
        )
    return ChainLoss(loss_N=loss_N, statistics=seen, counted_NK=counted_NK)


class _WithStateGradient(torch.autograd.Function):
    """A loss per chain whose gradient with respect to that chain's states is already known."""

    @staticmethod
    def forward(ctx, draft_states_NKH: Tensor, loss_N: Tensor, gradient_NKH: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_NKH)
        return loss_N.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (upstream_N,), (gradient_NKH,) = upstream, ctx.saved_tensors
        return (gradient_NKH * upstream_N[:, None, None]).to(gradient_NKH.dtype), None, None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """Parts whose state gradients can be added before the batch is complete."""

    parts: tuple[Part, ...]
    shares: dict[int, float]
    """Temperature index -> its share."""
    guide: Guide | None
    gradient_NKH: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tile:
    """Some whole chains, their counted rows gathered."""

    chains: slice
    counted_CK: Tensor
    draft_states_RH: Tensor
    target_states_UH: Tensor
    target_row_R: Tensor
    tokens_R: Tensor


def _groups(objective: Objective, chains: DraftChains, mixture: TemperatureMixture) -> tuple[_Group, ...]:
    """One group for all parts without a guide, and one per guided part and temperature."""
    shares = dict(enumerate(mixture.shares))
    plain = tuple(part for part in objective.parts if part.guide is None)
    guided = [(part, index) for part in objective.parts if part.guide is not None for index in shares]
    states_NKH = chains.draft_states_NKH.detach()
    dtype = states_NKH.dtype if not guided else torch.promote_types(states_NKH.dtype, torch.float32)
    found = [_Group(parts=plain, shares=shares, guide=None, gradient_NKH=torch.zeros_like(states_NKH, dtype=dtype))]
    found += [
        _Group(
            parts=(replace(part, guide=None),),
            shares={index: shares[index]},
            guide=part.guide,
            gradient_NKH=torch.zeros_like(states_NKH, dtype=dtype),
        )
        for part, index in guided
    ]
    return tuple(found if plain else found[1:])


def _blend(groups: tuple[_Group, ...], seen: tuple[DraftStatistics, ...], counted_NK: Tensor) -> Tensor | None:
    """Sum of the groups' state gradients, each times its guide, which the whole batch decides."""
    total_NKH = None
    for group in groups:
        gradient_NKH = group.gradient_NKH
        if group.guide is not None:
            (temperature,) = group.shares
            factor_K = group.guide(mean_overlap(seen[temperature], counted_NK))
            gradient_NKH.mul_(factor_K[:, None])
        total_NKH = gradient_NKH if total_NKH is None else total_NKH.add_(gradient_NKH)
    return total_NKH


def _tiles(chains: DraftChains, weight_VH: Tensor, groups: tuple[_Group, ...], fusion: Fusion) -> Iterator[_Tile]:
    """Cut the batch into tiles of whole chains whose logits fit the bound; chains without a counted row are skipped."""
    num_chains, num_depths = chains.tokens_NK.shape
    logit_bytes = max(4, weight_VH.element_size())
    max_rows = fusion.logits_bytes // (logit_bytes * len(weight_VH))
    draft_copies = 1 if len(groups) <= 1 else 2
    counted_NK = chains.counted_NK
    start = 0
    while start < num_chains:
        # Consecutive anchors share positions: C chains see C + K - 1 of them. Where they do not, halve until it fits.
        size = max(1, (max_rows - num_depths + 1) // (draft_copies * num_depths + 1))
        while True:
            tile = _gather(chains, counted_NK, slice(start, start + size))
            if size == 1 or draft_copies * len(tile.tokens_R) + len(tile.target_states_UH) <= max_rows:
                break
            size //= 2
        if len(tile.tokens_R):
            yield tile
        start += size


def _gather(chains: DraftChains, counted_NK: Tensor, which: slice) -> _Tile:
    counted_CK = counted_NK[which]
    positions_U, target_row_R = chains.positions_NK[which][counted_CK].unique(return_inverse=True)
    return _Tile(
        chains=which,
        counted_CK=counted_CK,
        draft_states_RH=chains.draft_states_NKH.detach()[which][counted_CK],
        target_states_UH=chains.target_states_PH.detach()[positions_U],
        target_row_R=target_row_R,
        tokens_R=chains.tokens_NK[which][counted_CK],
    )


def _sweep(
    tile: _Tile,
    weight_VH: Tensor,
    mixture: TemperatureMixture,
    kernels: RowKernels,
    seen: tuple[DraftStatistics, ...],
    groups: tuple[_Group, ...],
) -> None:
    """One tile from states to statistics (into ``seen``) and state gradients (into ``groups``)."""
    logits = TileLogits(
        target_UV=project_logits(tile.target_states_UH, weight_VH),
        draft_RV=project_logits(tile.draft_states_RH, weight_VH),
        target_row_R=tile.target_row_R,
        tokens_R=tile.tokens_R,
    )
    inverse = [1.0 / temperature for temperature in mixture.temperatures]
    rows = [kernels.statistics(logits, value) for value in inverse]
    in_tile = [statistics.map(lambda values_NK: values_NK[tile.chains]) for statistics in seen]
    for statistics, found in zip(in_tile, rows, strict=True):
        _store(statistics, tile.counted_CK, found)
    for group in groups:
        terms = [
            _gradient_term(group.parts, share, in_tile[index], tile.counted_CK, rows[index], inverse[index])
            for index, share in group.shares.items()
        ]
        # The last group may overwrite the draft logits: nobody reads them after it.
        out_RV = logits.draft_RV if group is groups[-1] else torch.empty_like(logits.draft_RV)
        kernels.gradient(logits, terms, out_RV)
        in_group_CKH = group.gradient_NKH[tile.chains]
        in_group_CKH[tile.counted_CK] = project_states(out_RV, weight_VH).to(in_group_CKH.dtype)


def _gradient_term(
    parts: tuple[Part, ...],
    share: float,
    statistics: DraftStatistics,
    counted_CK: Tensor,
    rows: RowStatistics,
    inverse_temperature: float,
) -> GradientTerm:
    """Differentiate the composition, over [C, K] numbers only."""
    leaves = statistics.map(lambda values_CK: values_CK.detach().clone().requires_grad_())
    used = (leaves.draft_logprob_NK, leaves.overlap_NK, leaves.kl_NK, leaves.reverse_kl_NK)
    with torch.enable_grad():
        total = torch.stack([part.loss(leaves, counted_CK).sum() for part in parts]).sum() * share
    upstream = torch.autograd.grad(total, used, allow_unused=True)
    draft_logprob_R, overlap_R, kl_R, reverse_kl_R = (
        None if gradient_CK is None else gradient_CK[counted_CK] for gradient_CK in upstream
    )
    return GradientTerm(
        inverse_temperature=inverse_temperature,
        statistics=rows,
        draft_logprob_R=draft_logprob_R,
        overlap_R=overlap_R,
        kl_R=kl_R,
        reverse_kl_R=reverse_kl_R,
    )


def _empty_statistics(chains: DraftChains, num_temperatures: int) -> tuple[DraftStatistics, ...]:
    states_NKH = chains.draft_states_NKH
    dtype = torch.promote_types(states_NKH.dtype, torch.float32)

    def zeros() -> Tensor:
        return torch.zeros(chains.tokens_NK.shape, dtype=dtype, device=states_NKH.device)

    return tuple(
        DraftStatistics(
            draft_logprob_NK=zeros(),
            target_logprob_NK=zeros(),
            overlap_NK=zeros(),
            kl_NK=zeros(),
            reverse_kl_NK=zeros(),
        )
        for _ in range(num_temperatures)
    )


def _store(statistics: DraftStatistics, counted_CK: Tensor, rows: RowStatistics) -> None:
    statistics.draft_logprob_NK[counted_CK] = rows.draft_logprob_R
    statistics.target_logprob_NK[counted_CK] = rows.target_logprob_R
    statistics.overlap_NK[counted_CK] = rows.overlap_R
    statistics.kl_NK[counted_CK] = rows.kl_R
    statistics.reverse_kl_NK[counted_CK] = rows.reverse_kl_R
