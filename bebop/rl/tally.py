"""What an update saw, as sums and counts over its tokens.

Shapes: N tokens that the policy wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bebop.core.grpo import PolicyLoss, kl_estimate
from bebop.metrics import Mean
from bebop.rl.batch import LearnBatch
from bebop.rl.records import Group


@dataclass(kw_only=True, slots=True)
class UpdateTally:
    """Sums over the micro-batches of one update; ``importance/*`` and ``mismatch_kl`` compare the sampler with the
    learner before its first optimiser step."""

    version: int
    """The learner's, before the update."""
    means: dict[str, Mean] = field(default_factory=dict)
    max_importance: float = 0.0
    grad_norm: Mean = field(default_factory=Mean)
    lr: float = 0.0

    def add(self, batch: LearnBatch, loss: PolicyLoss, before_N: Tensor) -> None:
        """Count a micro-batch. ``before_N``: the learner's log-probs before the first optimiser step."""
        ratio_N = (before_N - batch.behaviour_N).exp()
        self._mean("grpo/loss", loss.loss_N.detach())
        self._mean("grpo/clipped", loss.is_clipped_N)
        self._mean("grpo/kl", loss.kl_N)
        self._mean("importance/ratio", ratio_N)
        self._mean("importance/truncated", loss.is_truncated_N)
        self._mean("grpo/outside_support", before_N.isneginf())
        is_fresh_N = (batch.versions_N == self.version) & before_N.isfinite()
        self._mean("mismatch_kl", kl_estimate(batch.behaviour_N[is_fresh_N], before_N[is_fresh_N]))
        self.max_importance = max(self.max_importance, float(ratio_N.max()) if len(ratio_N) else 0.0)

    def stepped(self, grad_norm: float, lr: float) -> None:
        """Count an optimiser step."""
        self.grad_norm += Mean(grad_norm, 1)
        self.lr = lr

    @property
    def loss(self) -> float:
        """Mean per token so far; NaN before the first."""
        return self.means.get("grpo/loss", Mean()).value

    def metrics(self) -> dict[str, Mean | float]:
        """``importance/max``, ``grad_norm`` (mean over optimiser steps) and ``lr`` beside the means per token."""
        return {
            **self.means,
            "importance/max": self.max_importance,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
        }

    def _mean(self, name: str, values_N: Tensor) -> None:
        found = Mean(values_N.sum(dtype=torch.float64).item(), len(values_N))
        self.means[name] = self.means.get(name, Mean()) + found


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """How many groups had rewards that differ, and how many had nothing to teach."""
    num_used = sum(group.has_variance for group in groups)
    return {"groups/used": num_used, "groups/zero_variance": len(groups) - num_used}
