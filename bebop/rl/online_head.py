"""Training of the MTP head beside the policy, on the hidden states that the policy's own update computes anyway.

The head's loss reaches the head's parameters and nothing else: hidden states and lm_head enter it detached, and the
backward pass is asked for the gradients of the head's parameters alone, which leaves the embedding out.

Shapes: B rollouts, T tokens, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from bebop.core.chains import ChainLoss, TemperatureMixture
from bebop.core.fused import fused_loss, fusion_for
from bebop.engines.base import DraftStats
from bebop.errors import UserError
from bebop.metrics import Mean
from bebop.models.policy import Policy
from bebop.rl.drift import DriftTrigger
from bebop.rl.learner_config import OnlineHeadConfig
from bebop.training.chain_plan import plan_chains
from bebop.training.draft_loss import draft_chains, lm_head_weight, loss_of, overlaps_of
from bebop.training.hidden import Hiddens
from bebop.training.optimiser import learning_rate, open_optimiser, update
from bebop.training.transcripts import TokenBatch


class OnlineHead:
    """The head in training; it becomes float32 and changes in place."""

    def __init__(self, policy: Policy, config: OnlineHeadConfig, *, temperature: float, num_updates: int) -> None:
        """``temperature``: the rollouts', at which target and draft are compared, over the whole vocabulary."""
        if policy.head is None:
            raise UserError("the policy has no MTP head to train; add one with `bebop train-mtp`, or set mtp.mode=none")
        self._policy = policy
        self._config = config
        self._num_updates = num_updates
        self._temperature = temperature
        policy.head.float().requires_grad_(True)
        self.optimiser = open_optimiser(policy.head.named_parameters(), config.optimiser)
        self._trigger = DriftTrigger(config.drift) if config.drift else None

    def state(self) -> dict[str, nn.Parameter]:
        """What a checkpoint holds, by name."""
        assert self._policy.head is not None
        found = {f"head.{name}": one for name, one in self._policy.head.named_parameters()}
        return found if self._trigger is None else {**found, "drift.state": self._trigger.state}

    def begin(self, batches: Sequence[TokenBatch], drafts: DraftStats) -> HeadGradient | None:
        """An empty gradient over all micro-batches of an update; None where the head is left alone in it.

        ``drafts``: the rounds in which the update's rollouts were drafted.
        """
        if self._trigger is not None and not self._trigger.observe(drafts):
            return None
        num_rows = sum(plan_chains(batch, self._config.depths).num_counted for batch in batches)
        return HeadGradient(self._policy, self._config, self._temperature, num_rows) if num_rows else None

    def step(self, gradient: HeadGradient | None, version: int) -> dict[str, Mean | float]:
        """One optimiser step along the gradient; its metrics. Without a gradient ``online/is_training`` alone is left.

        ``UserError`` where loss or gradient is not finite; the head is then as before.
        """
        if gradient is None:
            return {"online/is_training": 0.0}
        optimiser = self._config.optimiser
        if not math.isfinite(gradient.loss.value):
            raise UserError(_diverged("loss", version))
        lr = learning_rate(version, self._num_updates, optimiser)
        norm = update(self.optimiser, lr, optimiser.max_grad_norm)
        if not math.isfinite(norm):
            raise UserError(_diverged("gradient", version))
        return {
            "online/is_training": 1.0,
            "online/loss": gradient.loss,
            **{f"online/overlap@{depth}": one for depth, one in enumerate(gradient.overlaps, start=1)},
            "online/grad_norm": norm,
            "online/lr": lr,
        }


class HeadGradient:
    """The gradient of the mean over all counted (chain, depth) rows of an update, added up by micro-batch."""

    def __init__(self, policy: Policy, config: OnlineHeadConfig, temperature: float, num_rows: int) -> None:
        self._policy = policy
        self._config = config
        self._objective = config.curriculum.objective(is_warm=True)
        self._mixture = TemperatureMixture(temperatures=(temperature,))
        self._num_rows = num_rows
        self._losses: list[ChainLoss] = []

    def add(self, batch: TokenBatch, hiddens: Hiddens) -> None:
        """Back-propagate some rollouts, given the backbone's detached states on them."""
        policy, head = self._policy, self._policy.head
        assert head is not None
        plan = plan_chains(batch, self._config.depths)
        if not plan.num_counted:
            return
        wide = Hiddens(draft_input_BTH=hiddens.draft_input_BTH.float(), target_BTH=hiddens.target_BTH.float())
        chains = draft_chains(policy, wide, plan, self._config.layout)
        weight_VH = lm_head_weight(policy).detach()
        loss = fused_loss(chains, weight_VH, self._objective, self._mixture, fusion_for(policy.device))
        mean = loss.loss_N.sum() * plan.num_depths / self._num_rows
        mean.backward(inputs=[one for one in head.parameters() if one.requires_grad])
        # What the graph of the loss still holds (inputs of the embedding's norm) must not pile up over the update.
        self._losses.append(replace(loss, loss_N=loss.loss_N.detach()))

    @property
    def loss(self) -> Mean:
        return sum((loss_of(one) for one in self._losses), Mean())

    @property
    def overlaps(self) -> tuple[Mean, ...]:
        """sum_v min(p, q) at depth k, over the chains that count there."""
        return overlaps_of(self._losses)


def _diverged(what: str, version: int) -> str:
    return (
        f"the MTP head's {what} of update {version + 1} is not finite; lower mtp.online.optimiser.lr and resume from "
        "the last checkpoint, which is whole"
    )
