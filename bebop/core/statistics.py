"""What every objective needs to know about a draft: five numbers per chain and depth, and how to read them from logits.

An objective is a function of these numbers alone (``core.objectives``), so the plain and the fused loss differ only in
how the record is made: here from full logits, in ``core.fused`` while streaming over the vocabulary.

Shapes: N chains, K draft depths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftStatistics:
    """Comparison of the draft's law q with the target's law p at every (chain, depth); y is the target's own token.

    The gradients with respect to the draft logits, used by the fused loss, are written beside each field.
    """

    draft_logprob_NK: Tensor
    """log q(y), in nats; gradient onehot(y) - q."""
    target_logprob_NK: Tensor
    """log p(y), in nats; carries no gradient."""
    overlap_NK: Tensor
    """alpha = sum_v min(p, q) = 1 - TV(p, q), the acceptance of rejection sampling; gradient q ([q <= p] - S)."""
    kl_NK: Tensor
    """KL(p || q) in nats; gradient q - p."""
    reverse_kl_NK: Tensor
    """KL(q || p) in nats; gradient q (log(q/p) - KL(q || p))."""

    def __post_init__(self) -> None:
        shapes = {tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(shapes) != 1:
            raise ValueError(f"all draft statistics must have one shape [N, K], got {sorted(shapes)}")

    @property
    def num_depths(self) -> int:
        return self.overlap_NK.shape[-1]

    def map(self, function: Callable[[Tensor], Tensor]) -> DraftStatistics:
        """The record with ``function`` applied to every tensor."""
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})


def draft_statistics(target_logits_NKV: Tensor, draft_logits_NKV: Tensor, tokens_NK: Tensor) -> DraftStatistics:
    """The plain reference: every statistic as its definition reads, in float32 or better.

    The target is detached. Logits of -inf (tokens removed by top-k, top-p, min-p) are allowed: 0 x inf counts as 0, so
    KL(p || q) is finite where q covers p, and KL(q || p) where p covers q.
    """
    check_chain_shapes(target_logits_NKV, draft_logits_NKV, tokens_NK)
    target_log_NKV = at_least_float32(target_logits_NKV.detach()).log_softmax(-1)
    draft_log_NKV = at_least_float32(draft_logits_NKV).log_softmax(-1)
    target_NKV, draft_NKV = target_log_NKV.exp(), draft_log_NKV.exp()

    # Not torch.minimum: where p = q its gradient would be split in halves, and the equation says [q <= p].
    smaller_NKV = torch.where(draft_NKV <= target_NKV, draft_NKV, target_NKV)
    log_ratio_NKV = target_log_NKV - draft_log_NKV
    picked_NK1 = tokens_NK[..., None]
    return DraftStatistics(
        draft_logprob_NK=draft_log_NKV.gather(-1, picked_NK1).squeeze(-1),
        target_logprob_NK=target_log_NKV.gather(-1, picked_NK1).squeeze(-1),
        overlap_NK=smaller_NKV.sum(-1),
        kl_NK=_expectation(target_NKV, log_ratio_NKV),
        reverse_kl_NK=_expectation(draft_NKV, -log_ratio_NKV),
    )


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened; float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


def check_chain_shapes(target_logits_NKV: Tensor, draft_logits_NKV: Tensor, tokens_NK: Tensor) -> None:
    """Raise ValueError unless both logits are [N, K, V] alike and the tokens are [N, K]."""
    if target_logits_NKV.shape != draft_logits_NKV.shape:
        raise ValueError(
            f"target logits {tuple(target_logits_NKV.shape)} and draft logits {tuple(draft_logits_NKV.shape)} "
            "must have one shape [N, K, V]"
        )
    if draft_logits_NKV.ndim != 3 or tokens_NK.shape != draft_logits_NKV.shape[:2]:
        raise ValueError(
            f"tokens {tuple(tokens_NK.shape)} must be [N, K] for logits [N, K, V] of {tuple(draft_logits_NKV.shape)}"
        )


def _expectation(probs_NKV: Tensor, values_NKV: Tensor) -> Tensor:
    """Sum of probs x values over the support; the inner choice keeps 0 x inf out of the gradient too."""
    return (probs_NKV * torch.where(probs_NKV > 0, values_NKV, 0.0)).sum(-1)
