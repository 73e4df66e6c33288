"""Row statistics and logit gradients of one tile of rows, streamed over the vocabulary: the PyTorch kernels.

They say what a kernel set does (``RowKernels``); ``core.fused_triton`` holds the other one. A tile has the full
vocabulary for a few rows; temporaries exist for ``vocabulary_tile`` columns at a time, small enough for the cache.

Shapes: R draft rows in the tile, U target positions in the tile, V vocabulary, C columns of one vocabulary tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.linalg import vecdot


@dataclass(frozen=True, kw_only=True, slots=True)
class TileLogits:
    """Logits of a tile, float32 or float64, before temperature."""

    target_UV: Tensor
    draft_RV: Tensor
    target_row_R: Tensor
    """Row of ``target_UV`` that each draft row is compared with."""
    tokens_R: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RowStatistics:
    """The statistics of ``DraftStatistics`` per row, and what the gradient needs beside them."""

    draft_logprob_R: Tensor
    target_logprob_R: Tensor
    overlap_R: Tensor
    kl_R: Tensor
    reverse_kl_R: Tensor
    below_mass_R: Tensor
    """S = sum_v [q <= p] q."""
    target_lse_U: Tensor
    draft_lse_R: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientTerm:
    """Upstream gradient of each statistic per row, at one temperature; None = that statistic is not used."""

    inverse_temperature: float
    statistics: RowStatistics
    draft_logprob_R: Tensor | None
    overlap_R: Tensor | None
    kl_R: Tensor | None
    reverse_kl_R: Tensor | None

    def scaled(self) -> GradientTerm:
        """The term with the temperature's factor of the chain rule taken into its coefficients."""

        def scale(values_R: Tensor | None) -> Tensor | None:
            return None if values_R is None else values_R * self.inverse_temperature

        return replace(
            self,
            draft_logprob_R=scale(self.draft_logprob_R),
            overlap_R=scale(self.overlap_R),
            kl_R=scale(self.kl_R),
            reverse_kl_R=scale(self.reverse_kl_R),
        )

    @property
    def uses_target(self) -> bool:
        """Whether the gradient depends on more of the target than its token."""
        return not (self.overlap_R is None and self.kl_R is None and self.reverse_kl_R is None)

    def constant_R(self) -> Tensor:
        """Everything that multiplies q alone in the gradient."""
        constant_R = torch.zeros_like(self.statistics.draft_lse_R)
        if self.draft_logprob_R is not None:
            constant_R = constant_R - self.draft_logprob_R
        if self.overlap_R is not None:
            constant_R = constant_R - self.overlap_R * self.statistics.below_mass_R
        if self.kl_R is not None:
            constant_R = constant_R + self.kl_R
        if self.reverse_kl_R is not None:
            constant_R = constant_R - self.reverse_kl_R * self.statistics.reverse_kl_R
        return constant_R


class RowKernels(Protocol):
    """The two sweeps over the vocabulary that a fused loss is made of."""

    def statistics(self, tile: TileLogits, inverse_temperature: float) -> RowStatistics: ...

    def gradient(self, tile: TileLogits, terms: Sequence[GradientTerm], out_RV: Tensor) -> None:
        """Write the gradient with respect to the draft logits, summed over terms; ``out_RV`` may be ``draft_RV``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedKernels:
    """Plain PyTorch over vocabulary tiles, on any device; the specification of the others."""

    vocabulary_tile: int = 4096

    def __post_init__(self) -> None:
        if self.vocabulary_tile < 1:
            raise ValueError(f"vocabulary_tile must be at least 1, got {self.vocabulary_tile}")

    def statistics(self, tile: TileLogits, inverse_temperature: float) -> RowStatistics:
        target_lse_U = self._log_sum_exp(tile.target_UV, inverse_temperature)
        draft_lse_R = self._log_sum_exp(tile.draft_RV, inverse_temperature)
        overlap_R, below_R, kl_R, reverse_R = torch.zeros(4, *draft_lse_R.shape).to(draft_lse_R).unbind(0)
        for columns in self._columns(tile):
            target_log_UC = _log_probs(tile.target_UV[:, columns], inverse_temperature, target_lse_U)
            draft_log_RC = _log_probs(tile.draft_RV[:, columns], inverse_temperature, draft_lse_R)
            target_RC = target_log_UC.exp().index_select(0, tile.target_row_R)
            draft_RC = draft_log_RC.exp()
            log_ratio_RC = target_log_UC.index_select(0, tile.target_row_R).sub_(draft_log_RC)
            overlap_R += torch.minimum(target_RC, draft_RC).sum(-1)
            kl_R += vecdot(target_RC, log_ratio_RC)
            reverse_R -= vecdot(draft_RC, log_ratio_RC)
            below_R += vecdot(draft_RC, _at_least_zero_(log_ratio_RC))
        token_R1 = tile.tokens_R[:, None]
        target_token_R = tile.target_UV[tile.target_row_R, tile.tokens_R] * inverse_temperature
        draft_token_R = tile.draft_RV.gather(1, token_R1).squeeze(1) * inverse_temperature
        return RowStatistics(
            draft_logprob_R=draft_token_R - draft_lse_R,
            target_logprob_R=target_token_R - target_lse_U[tile.target_row_R],
            overlap_R=overlap_R,
            kl_R=kl_R,
            reverse_kl_R=reverse_R,
            below_mass_R=below_R,
            target_lse_U=target_lse_U,
            draft_lse_R=draft_lse_R,
        )

    def gradient(self, tile: TileLogits, terms: Sequence[GradientTerm], out_RV: Tensor) -> None:
        scaled = [term.scaled() for term in terms]
        for columns in self._columns(tile):
            total_RC = _term_gradient(tile, scaled[0], columns)
            for term in scaled[1:]:
                total_RC += _term_gradient(tile, term, columns)
            out_RV[:, columns] = total_RC
        for term in scaled:
            if term.draft_logprob_R is not None:
                out_RV.scatter_add_(1, tile.tokens_R[:, None], term.draft_logprob_R[:, None])

    def _log_sum_exp(self, logits_XV: Tensor, inverse_temperature: float) -> Tensor:
        total_X = torch.full_like(logits_XV[:, 0], -torch.inf)
        for start in range(0, logits_XV.shape[1], self.vocabulary_tile):
            logits_XC = logits_XV[:, start : start + self.vocabulary_tile]
            if inverse_temperature != 1:
                logits_XC = logits_XC * inverse_temperature
            total_X = torch.logaddexp(total_X, logits_XC.logsumexp(-1))
        return total_X

    def _columns(self, tile: TileLogits) -> Iterator[slice]:
        size = tile.draft_RV.shape[1]
        return (slice(start, start + self.vocabulary_tile) for start in range(0, size, self.vocabulary_tile))


def _log_probs(logits_XC: Tensor, inverse_temperature: float, lse_X: Tensor) -> Tensor:
    # One fused pass: scaled logit minus log-sum-exp.
    return torch.add(-lse_X[:, None], logits_XC, alpha=inverse_temperature)


def _at_least_zero_(log_ratio_RC: Tensor) -> Tensor:
    """[q <= p] as 0 or 1, in place: many times faster on a CPU than a boolean and ``torch.where``."""
    return log_ratio_RC.ge_(0)


def _term_gradient(tile: TileLogits, term: GradientTerm, columns: slice) -> Tensor:
    """Gradient of one scaled term but for the one-hot of the token.

    q ([q <= p] overlap + log(q/p) reverse_kl + constant) - p kl, where the names are the term's coefficients.
    """
    statistics, constant_R1 = term.statistics, term.constant_R()[:, None]
    draft_log_RC = _log_probs(tile.draft_RV[:, columns], term.inverse_temperature, statistics.draft_lse_R)
    if not term.uses_target:
        return draft_log_RC.exp_().mul_(constant_R1)
    target_log_UC = _log_probs(tile.target_UV[:, columns], term.inverse_temperature, statistics.target_lse_U)
    target_log_RC = target_log_UC.index_select(0, tile.target_row_R)
    log_ratio_RC = target_log_RC - draft_log_RC
    factor_RC = constant_R1
    if term.reverse_kl_R is not None:
        factor_RC = factor_RC - log_ratio_RC * term.reverse_kl_R[:, None]
    if term.overlap_R is not None:
        factor_RC = _at_least_zero_(log_ratio_RC).mul_(term.overlap_R[:, None]).add_(factor_RC)
    gradient_RC = draft_log_RC.exp_().mul_(factor_RC)
    if term.kl_R is not None:
        gradient_RC.addcmul_(target_log_RC.exp_(), term.kl_R[:, None], value=-1.0)
    return gradient_RC
