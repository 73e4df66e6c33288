"""Group-relative policy optimisation (GRPO, arXiv 2402.03300): advantages and the loss of each token.

Four log-probabilities of the same token, all under the sampling distribution: *behaviour* (the sampler's, at whatever
version it ran), *proximal* (the learner's before the step), *current* (being trained) and *reference* (the frozen
start). The clip holds current near proximal; what separates proximal from behaviour (lag, another engine's rounding) is
corrected by a truncated importance weight of its own ("decoupled", arXiv 2110.00641 and 2505.24298):

    loss = -w min(r A, clip(r, 1 - low, 1 + high) A) + beta kl      w = min(exp(proximal - behaviour), C), detached
                                                                    r = exp(current - proximal)

Shapes: G rollouts of one group, N tokens that the policy wrote, S rollouts that they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped here: exp(20) is a ratio of 5e8, beyond which only overflow is left to gain."""

RatioKind = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """The constants of the loss. Raises ``ValueError`` at birth on a value out of range."""

    low: float = 0.2
    """The ratio's gradient ends at ``1 - low`` where the advantage is negative."""
    high: float = 0.2
    """And at ``1 + high`` where it is positive."""
    max_importance: float = 2.0
    """C, the bound on the importance weight."""
    ratio: RatioKind = "token"
    """``sequence``: one ratio per rollout, the geometric mean of its tokens' (GSPO, arXiv 2507.18071)."""
    kl_weight: float = 0.0
    """beta, of the KL to the reference."""

    def __post_init__(self) -> None:
        if not (0 < self.low <= 1 and self.high > 0):
            raise ValueError(f"the clip must have 0 < low <= 1 and high > 0, got {self.low} and {self.high}")
        if self.max_importance < 1:
            raise ValueError(f"max_importance must be at least 1, got {self.max_importance}")
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight must be at least 0, got {self.kl_weight}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogProbs:
    """Nats. Only ``current_N`` carries a gradient. A token outside the learner's truncated support has -inf."""

    current_N: Tensor
    proximal_N: Tensor
    behaviour_N: Tensor
    reference_N: Tensor | None = None
    """Needed where ``kl_weight`` is above 0."""
    rollout_N: Tensor | None = None
    """int64, which rollout a token belongs to; needed for the ratio of sequences. A rollout's tokens are all here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss:
    """The loss of each token, and what it was made of, detached."""

    loss_N: Tensor
    importance_N: Tensor
    """exp(proximal - behaviour), before the truncation."""
    is_truncated_N: Tensor
    is_clipped_N: Tensor
    """The clip took this token's gradient."""
    kl_N: Tensor
    """The estimate k3 of the KL to the reference; 0 without one."""


def group_advantages(rewards_G: Tensor, *, normalise: bool = True) -> Tensor:
    """``(reward - mean) / std`` within the group (population std), which sums to 0; all 0 where rewards are equal.

    ``normalise=False`` leaves the std away (Dr. GRPO, arXiv 2503.20783), which weighs groups by how mixed they are.
    """
    rewards_G = rewards_G.double()
    # Asked of the rewards, not of the std, which rounding keeps above 0 for three rewards of 0.1.
    if not has_signal(rewards_G):
        return torch.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / centred_G.square().mean().sqrt() if normalise else centred_G


def has_signal(rewards_G: Tensor) -> bool:
    """Whether rewards of the group differ; without that every advantage is 0 and there is nothing to learn."""
    return bool((rewards_G != rewards_G[:1]).any())


def policy_loss(logprobs: TokenLogProbs, advantages_N: Tensor, settings: ClipSettings) -> PolicyLoss:
    """The loss of each token; the caller weighs them (a token mean, or a mean of rollouts' means).

    A token that the learner's truncation excludes has proximal probability 0, so its importance weight and its loss
    are 0, and its gradient is 0 rather than NaN.
    """
    is_supported_N = logprobs.current_N.isfinite() & logprobs.proximal_N.isfinite()
    current_N = torch.where(is_supported_N, logprobs.current_N, 0.0)
    proximal_N = torch.where(is_supported_N, logprobs.proximal_N, 0.0).detach()
    log_importance_N = (proximal_N - logprobs.behaviour_N).clamp(max=MAX_LOG_RATIO)
    importance_N = torch.where(is_supported_N, log_importance_N.exp(), 0.0)
    weight_N = importance_N.clamp(max=settings.max_importance)
    log_ratio_N = current_N - proximal_N
    if settings.ratio == "sequence":
        assert logprobs.rollout_N is not None, "the ratio of sequences needs rollout_N"
        log_ratio_N = mean_of_rollout(log_ratio_N, logprobs.rollout_N)
    ratio_N = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - settings.low, 1 + settings.high) * advantages_N
    loss_N = -weight_N * torch.minimum(unclipped_N, clipped_N)
    kl_N = torch.zeros_like(current_N)
    if settings.kl_weight > 0:
        assert logprobs.reference_N is not None, "a KL needs a reference"
        is_known_N = is_supported_N & logprobs.reference_N.isfinite()
        kl_N = kl_estimate(current_N, torch.where(is_known_N, logprobs.reference_N, current_N.detach()))
        loss_N = loss_N + settings.kl_weight * torch.where(is_known_N, kl_N, 0.0)
    return PolicyLoss(
        loss_N=loss_N,
        importance_N=importance_N,
        is_truncated_N=importance_N > settings.max_importance,
        is_clipped_N=(clipped_N < unclipped_N).detach(),
        kl_N=kl_N.detach(),
    )


def mean_of_rollout(values_N: Tensor, rollout_N: Tensor) -> Tensor:
    """The mean [N] over the rollout that each token belongs to, differentiable."""
    num_rollouts = int(rollout_N.max()) + 1 if len(rollout_N) else 0
    sums_S = values_N.new_zeros(num_rollouts).index_add(0, rollout_N, values_N)
    counts_S = values_N.new_zeros(num_rollouts).index_add(0, rollout_N, torch.ones_like(values_N))
    return (sums_S / counts_S.clamp(min=1))[rollout_N]


def kl_estimate(sampled_N: Tensor, other_N: Tensor) -> Tensor:
    """k3 of KL(sampled || other) from tokens of the first, per token, never negative (J. Schulman, 2020)."""
    log_ratio_N = (other_N - sampled_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_N.expm1() - log_ratio_N
