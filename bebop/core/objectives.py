"""The objectives that train an MTP head (eager, the reference for ``core.fused``).

``OBJECTIVES[name](target_logits_NKV, draft_logits_NKV, tokens_NK) -> loss_N``: one value per chain of K drafts, the
mean of K per-depth terms. The tokens are the target's own samples (rollouts). The target is detached, the full
vocabulary is used, and sums are float32 or better. An objective never sees the vocabulary: it composes
``DraftStatistics``.

A depth is counted when it and every depth before it is unmasked: drafting from a prefix that nobody sampled does not
happen when the head is deployed. Masked depths add 0 to the sum over K, so ``K * loss_N.sum() / counted.sum()`` is the
mean per row, and chains cut short by a document's end do not weigh more than others.

Shapes: N chains, K draft depths, V vocabulary. Formulas: p target, q draft, y token, alpha overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from bebop.core.statistics import DraftStatistics, draft_statistics

Compose = Callable[[DraftStatistics], Tensor]
"""Statistics -> term_NK: the loss term of each depth."""
Guide = Callable[[Tensor], Tensor]
"""Mean overlap of the whole batch per depth (detached) -> factor_K."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One weighted term of an objective."""

    compose: Compose
    weight: float = 1.0
    decay: float = 1.0
    """Depth k counts in proportion to decay^(k-1); the K weights average to ``weight``."""
    guide: Guide | None = None
    """A factor per depth known only once the whole batch is; then ``compose`` must not couple depths."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight of a loss term must be a number of at least 0, got {self.weight}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay of a loss term must be above 0 and at most 1, got {self.decay}")

    def loss(self, statistics: DraftStatistics, counted_NK: Tensor) -> Tensor:
        """-> loss_N without the guide."""
        term_NK = self.compose(statistics)
        weights_K = depth_weights(self.decay, statistics.num_depths, like=term_NK) * self.weight
        return torch.where(counted_NK, term_NK * weights_K, 0.0).mean(-1)

    def guided_loss(self, statistics: DraftStatistics, counted_NK: Tensor) -> Tensor:
        """-> loss_N with the guide, if there is one."""
        if self.guide is None:
            return self.loss(statistics, counted_NK)
        factor_K = self.guide(mean_overlap(statistics, counted_NK))
        return replace(self, compose=lambda s: self.compose(s) * factor_K, guide=None).loss(statistics, counted_NK)


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A sum of parts, callable on full logits; ``loss`` is what the fused versions share with it."""

    parts: tuple[Part, ...]

    def __call__(
        self,
        target_logits_NKV: Tensor,
        draft_logits_NKV: Tensor,
        tokens_NK: Tensor,
        *,
        depth_mask_NK: Tensor | None = None,
    ) -> Tensor:
        """-> loss_N. Masked logits must be finite; masked tokens any id of the vocabulary."""
        statistics = draft_statistics(target_logits_NKV, draft_logits_NKV, tokens_NK)
        return self.loss(statistics, counted_depths(tokens_NK, depth_mask_NK))

    def loss(self, statistics: DraftStatistics, counted_NK: Tensor) -> Tensor:
        """-> loss_N from statistics; differentiable in each of them."""
        losses = [part.guided_loss(statistics, counted_NK) for part in self.parts]
        return torch.stack(losses).sum(0)


def counted_depths(tokens_NK: Tensor, depth_mask_NK: Tensor | None) -> Tensor:
    """-> bool_NK: the depths that count, i.e. those with no masked depth at or before them."""
    if depth_mask_NK is None:
        return torch.ones_like(tokens_NK, dtype=torch.bool)
    if depth_mask_NK.shape != tokens_NK.shape:
        raise ValueError(
            f"depth mask {tuple(depth_mask_NK.shape)} must be shaped like the tokens {tuple(tokens_NK.shape)}"
        )
    return depth_mask_NK.bool().int().cumprod(-1).bool()


def depth_weights(decay: float, num_depths: int, *, like: Tensor) -> Tensor:
    """-> weights_K proportional to decay^(k-1), averaging to 1."""
    weights_K = decay ** torch.arange(num_depths, dtype=like.dtype, device=like.device)
    return weights_K / weights_K.mean()


def mean_overlap(statistics: DraftStatistics, counted_NK: Tensor) -> Tensor:
    """-> mean overlap per depth over the counted rows of the batch [K], detached; 0 where a depth has no row."""
    total_K = torch.where(counted_NK, statistics.overlap_NK.detach(), 0.0).sum(0)
    return total_K / counted_NK.sum(0).clamp(min=1)


def ce(statistics: DraftStatistics) -> Tensor:
    """-log q(y): hard labels, what open MTP trainers use."""
    return -statistics.draft_logprob_NK


def kl(statistics: DraftStatistics) -> Tensor:
    """KL(p || q); the gradient of cross-entropy against the target's law (the paper's CE, arXiv 2606.12370)."""
    return statistics.kl_NK


def reverse_kl(statistics: DraftStatistics) -> Tensor:
    """KL(q || p)."""
    return statistics.reverse_kl_NK


def tv(statistics: DraftStatistics) -> Tensor:
    """TV(p, q) = 1 - sum_v min(p, q) (arXiv 2606.12370, eqs. 10, 11)."""
    return 1 - statistics.overlap_NK


def e2e_tv(statistics: DraftStatistics) -> Tensor:
    """1 - prod_{i<=j} alpha_i at depth j (arXiv 2606.12370, eq. 13)."""
    return 1 - statistics.overlap_NK.cumprod(-1)


def e2e_tv_path(statistics: DraftStatistics) -> Tensor:
    """1 - alpha_k w_k, w_k = prod_{i<k} min(1, q_i(y_i) / p_i(y_i)).

    For y sampled from the target, the mean over chains of sum_k alpha_k w_k is exactly the number of drafts that
    rejection sampling accepts: sum_k sum_{y_1..y_k} prod_i min(p_i, q_i).
    """
    log_survival_NK = (statistics.draft_logprob_NK - statistics.target_logprob_NK).clamp(max=0).cumsum(-1)
    weight_NK = torch.nn.functional.pad(log_survival_NK[:, :-1], (1, 0)).exp()
    return 1 - statistics.overlap_NK * weight_NK


def e2e_block(statistics: DraftStatistics) -> Tensor:
    """1 - min_{0<=k<=l} rho_k at depth l, rho_k = prod_{i<=k} q_i(y_i) / p_i(y_i).

    For y sampled from the target, the mean of sum_l min_k rho_k is the number of drafts that block verification
    (arXiv 2403.10444) accepts.
    """
    log_rho_NK = (statistics.draft_logprob_NK - statistics.target_logprob_NK).cumsum(-1)
    return 1 - log_rho_NK.cummin(-1).values.clamp(max=0).exp()


def lk_alpha(statistics: DraftStatistics) -> Tensor:
    """-log alpha (arXiv 2602.23881). Where alpha underflows to 0 the value is -log(smallest normal), the gradient 0."""
    overlap_NK = statistics.overlap_NK
    return -overlap_NK.clamp(min=torch.finfo(overlap_NK.dtype).tiny).log()


def lk_lambda_of(mean_overlap_K: Tensor) -> Tensor:
    """lambda = exp(-3 alpha): all KL while nothing overlaps, mostly TV once most does (arXiv 2602.23881)."""
    return torch.exp(-3.0 * mean_overlap_K)


def _one_minus_lk_lambda(mean_overlap_K: Tensor) -> Tensor:
    return 1 - lk_lambda_of(mean_overlap_K)


def _single(compose: Compose) -> Objective:
    return Objective(parts=(Part(compose=compose),))


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "ce": _single(ce),
        "kl": _single(kl),
        "reverse_kl": _single(reverse_kl),
        "tv": _single(tv),
        "e2e_tv": _single(e2e_tv),
        "e2e_tv_path": _single(e2e_tv_path),
        "e2e_block": _single(e2e_block),
        "lk_alpha": _single(lk_alpha),
        # lambda KL + (1 - lambda) TV, depths weighted 0.8^(k-1) (arXiv 2602.23881).
        "lk_lambda": Objective(
            parts=(
                Part(compose=kl, decay=0.8, guide=lk_lambda_of),
                Part(compose=tv, decay=0.8, guide=_one_minus_lk_lambda),
            )
        ),
        # The weights of arXiv 2607.05147, its L1 distance halved to TV.
        "ce_tv": Objective(parts=(Part(compose=ce, weight=0.1), Part(compose=tv, weight=0.9))),
    }
)
