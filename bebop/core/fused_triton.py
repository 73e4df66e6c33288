"""The row kernels of the fused loss in Triton, for a GPU; ``fused_rows.ChunkedKernels`` says what they compute.

Importing this module imports Triton, so only a caller who has chosen these kernels does. Under ``TRITON_INTERPRET=1``
(set before the import) they run on CPU tensors, for tests. Matrix products stay with cuBLAS; these kernels read the
logits of a tile twice for the statistics and once for the gradient, which may overwrite them.

Shapes: R draft rows in the tile, U target positions in the tile, V vocabulary, T gradient terms.
"""

# Triton declares block sizes as constexpr and is given plain numbers, and launches take options kernels do not declare.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bebop.core.fused_rows import GradientTerm, RowStatistics, TileLogits


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonKernels:
    """``RowKernels`` on float32 logits; block sizes are powers of two.

    With 8 warps a block of 2048 takes 63 registers a thread for the statistics and 35 for the gradient (sm_90).
    """

    statistics_block: int = 2048
    gradient_block: int = 2048

    num_warps: int = 8

    def __post_init__(self) -> None:
        for name in ("statistics_block", "gradient_block"):
            block = getattr(self, name)
            if block < 1 or block & (block - 1):
                raise ValueError(f"{name} must be a power of two, got {block}")

    def statistics(self, tile: TileLogits, inverse_temperature: float) -> RowStatistics:
        _require_float32(tile)
        num_rows, num_columns = tile.draft_RV.shape
        target_lse_U = self._log_sum_exp(tile.target_UV, inverse_temperature)
        draft_lse_R = self._log_sum_exp(tile.draft_RV, inverse_temperature)
        sums_6R = tile.draft_RV.new_empty(6, num_rows)
        statistics_kernel[(num_rows,)](
            tile.target_UV,
            tile.draft_RV,
            tile.target_row_R,
            tile.tokens_R,
            target_lse_U,
            draft_lse_R,
            sums_6R,
            num_rows,
            num_columns,
            inverse_temperature,
            BLOCK=self.statistics_block,
            num_warps=self.num_warps,
        )
        overlap_R, below_R, kl_R, reverse_R, draft_logprob_R, target_logprob_R = sums_6R.unbind(0)
        return RowStatistics(
            draft_logprob_R=draft_logprob_R,
            target_logprob_R=target_logprob_R,
            overlap_R=overlap_R,
            kl_R=kl_R,
            reverse_kl_R=reverse_R,
            below_mass_R=below_R,
            target_lse_U=target_lse_U,
            draft_lse_R=draft_lse_R,
        )

    def gradient(self, tile: TileLogits, terms: Sequence[GradientTerm], out_RV: Tensor) -> None:
        _require_float32(tile)
        num_rows, num_columns = tile.draft_RV.shape
        inverse_T = torch.tensor([term.inverse_temperature for term in terms], device=out_RV.device)
        gradient_kernel[(num_rows, triton.cdiv(num_columns, self.gradient_block))](
            tile.target_UV,
            tile.draft_RV,
            out_RV,
            tile.target_row_R,
            tile.tokens_R,
            torch.stack([term.statistics.target_lse_U for term in terms]),
            torch.stack([term.statistics.draft_lse_R for term in terms]),
            torch.stack([_coefficients(term.scaled()) for term in terms]),
            inverse_T,
            num_rows,
            len(tile.target_UV),
            num_columns,
            NUM_TERMS=len(terms),
            USES_TARGET=any(term.uses_target for term in terms),
            BLOCK=self.gradient_block,
            num_warps=self.num_warps,
        )

    def _log_sum_exp(self, logits_XV: Tensor, inverse_temperature: float) -> Tensor:
        lse_X = logits_XV.new_empty(len(logits_XV))
        log_sum_exp_kernel[(len(logits_XV),)](
            logits_XV,
            lse_X,
            logits_XV.shape[1],
            inverse_temperature,
            BLOCK=self.statistics_block,
            num_warps=self.num_warps,
        )
        return lse_X


def _require_float32(tile: TileLogits) -> None:
    if tile.draft_RV.dtype != torch.float32:
        raise ValueError(f"the Triton kernels take float32 logits, got {tile.draft_RV.dtype}; use ChunkedKernels")
    assert tile.draft_RV.is_contiguous() and tile.target_UV.is_contiguous()


def _coefficients(term: GradientTerm) -> Tensor:
    """-> [5, R]: what multiplies q, q [q <= p], q log(q/p), -p and the token's one-hot, of a scaled term."""
    zero_R = torch.zeros_like(term.statistics.draft_lse_R)
    given = (term.overlap_R, term.reverse_kl_R, term.kl_R, term.draft_logprob_R)
    rows = [term.constant_R(), *(zero_R if values_R is None else values_R for values_R in given)]
    return torch.stack(rows)


@triton.jit
def log_sum_exp_kernel(logits_ptr, lse_ptr, num_columns, inverse_temperature, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    highest = -float("inf")
    total = 0.0
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        logits = (
            tl.load(logits_ptr + row * num_columns + columns, mask=inside, other=-float("inf")) * inverse_temperature
        )
        raised = tl.maximum(highest, tl.max(logits, 0))
        total = total * tl.exp(highest - raised) + tl.sum(tl.exp(logits - raised), 0)
        highest = raised
    tl.store(lse_ptr + row, highest + tl.log(total))


@triton.jit
def statistics_kernel(
    target_ptr,
    draft_ptr,
    target_row_ptr,
    token_ptr,
    target_lse_ptr,
    draft_lse_ptr,
    sums_ptr,
    num_rows,
    num_columns,
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target_row = tl.load(target_row_ptr + row)
    target_lse = tl.load(target_lse_ptr + target_row)
    draft_lse = tl.load(draft_lse_ptr + row)
    target_ptr += target_row * num_columns
    draft_ptr += row * num_columns
    overlap = tl.zeros([BLOCK], tl.float32)
    below = tl.zeros([BLOCK], tl.float32)
    forward = tl.zeros([BLOCK], tl.float32)
    reverse = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        target_log = tl.load(target_ptr + columns, mask=inside, other=0.0) * inverse_temperature - target_lse
        draft_log = tl.load(draft_ptr + columns, mask=inside, other=0.0) * inverse_temperature - draft_lse
        target = tl.where(inside, tl.exp(target_log), 0.0)
        draft = tl.where(inside, tl.exp(draft_log), 0.0)
        overlap += tl.minimum(target, draft)
        below += tl.where(draft_log <= target_log, draft, 0.0)
        forward += target * (target_log - draft_log)
        reverse += draft * (draft_log - target_log)
    token = tl.load(token_ptr + row)
    tl.store(sums_ptr + row, tl.sum(overlap, 0))
    tl.store(sums_ptr + num_rows + row, tl.sum(below, 0))
    tl.store(sums_ptr + 2 * num_rows + row, tl.sum(forward, 0))
    tl.store(sums_ptr + 3 * num_rows + row, tl.sum(reverse, 0))
    tl.store(sums_ptr + 4 * num_rows + row, tl.load(draft_ptr + token) * inverse_temperature - draft_lse)
    tl.store(sums_ptr + 5 * num_rows + row, tl.load(target_ptr + token) * inverse_temperature - target_lse)


@triton.jit
def gradient_kernel(
    target_ptr,
    draft_ptr,
    out_ptr,
    target_row_ptr,
    token_ptr,
    target_lse_ptr,
    draft_lse_ptr,
    coefficient_ptr,
    inverse_ptr,
    num_rows,
    num_targets,
    num_columns,
    NUM_TERMS: tl.constexpr,
    USES_TARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    target_row = tl.load(target_row_ptr + row)
    is_token = columns == tl.load(token_ptr + row)
    draft_logits = tl.load(draft_ptr + row * num_columns + columns, mask=inside, other=0.0)
    target_logits = tl.zeros([BLOCK], tl.float32)
    if USES_TARGET:
        target_logits = tl.load(target_ptr + target_row * num_columns + columns, mask=inside, other=0.0)
    gradient = tl.zeros([BLOCK], tl.float32)
    for term in range(NUM_TERMS):
        inverse_temperature = tl.load(inverse_ptr + term)
        coefficients = coefficient_ptr + term * 5 * num_rows + row
        draft_log = draft_logits * inverse_temperature - tl.load(draft_lse_ptr + term * num_rows + row)
        factor = tl.zeros([BLOCK], tl.float32) + tl.load(coefficients)
        if USES_TARGET:
            target_log = target_logits * inverse_temperature - tl.load(target_lse_ptr + term * num_targets + target_row)
            factor += tl.where(draft_log <= target_log, tl.load(coefficients + num_rows), 0.0)
            factor += (draft_log - target_log) * tl.load(coefficients + 2 * num_rows)
            gradient -= tl.exp(target_log) * tl.load(coefficients + 3 * num_rows)
        gradient += tl.exp(draft_log) * factor
        gradient += tl.where(is_token, tl.load(coefficients + 4 * num_rows), 0.0)
    tl.store(out_ptr + row * num_columns + columns, gradient, mask=inside)
