"""Groups of rollouts -> one update of the policy.

::

    groups -> traces with advantages -> minibatches -> micro-batches -> backbone -> log-probs -> loss -> optimiser step

Everything is a function of the groups and the state: there is no random draw, so a resumed learner goes on bit for bit.

Shapes: N tokens that the policy wrote.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bebop.core.grpo import TokenLogProbs, policy_loss
from bebop.core.sampling import Sampling
from bebop.engines.base import DraftStats
from bebop.errors import UserError
from bebop.metrics import Mean
from bebop.models.policy import Policy
from bebop.models.record import parameter_dtype
from bebop.rl.batch import LearnBatch, Trace, learn_batches, traces_of, weighed
from bebop.rl.contract import HEAD_PREFIX
from bebop.rl.learner_config import LearnerConfig, OnlineHeadConfig
from bebop.rl.logprobs import token_logprobs
from bebop.rl.online_head import HeadGradient, OnlineHead
from bebop.rl.prompt_sharing import States, run_layout
from bebop.rl.records import Group
from bebop.rl.staleness import lag_metrics, lags
from bebop.rl.tally import UpdateTally, group_metrics
from bebop.training.checkpoint import Trained
from bebop.training.optimiser import learning_rate, open_optimiser, update


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What one update did."""

    version: int
    """Of the weights that it made."""
    metrics: Mapping[str, Mean | float]


def nothing() -> None:
    """Nobody waits."""


class Learner:
    """The policy in training: its backbone (and, where that is trained, its head) turns float32, changed in place."""

    def __init__(
        self,
        policy: Policy,
        config: LearnerConfig,
        *,
        num_updates: int,
        sampling: Sampling | None = None,
        head: OnlineHeadConfig | None = None,
        reference: Policy | None = None,
    ) -> None:
        """``num_updates``: length of the learning-rate schedule. ``sampling``: the rollouts'. ``head``: how to train
        the MTP head; None leaves it alone. ``reference``: of the KL; None = the policy as it is now.
        """
        self.policy = policy
        self.config = config
        self.version = 0
        """Updates so far. Whoever restores a checkpoint into ``trained`` sets it to the checkpoint's step."""
        self._sampling = sampling or Sampling()
        self._num_updates = num_updates
        if self._sampling.is_greedy:
            raise UserError("rollouts at temperature 0 have no gradient; set a sampling temperature above 0")
        self._compute_dtype = policy.dtype
        self._reference = (reference or _frozen_copy(policy)) if config.kl_weight > 0 else None
        policy.backbone.float().requires_grad_(True).eval()
        if policy.head is not None:
            policy.head.requires_grad_(False)
        self._head = None
        if head is not None:
            temperature = self._sampling.temperature
            self._head = OnlineHead(policy, head, temperature=temperature, num_updates=num_updates)
        parameters = dict(policy.backbone.named_parameters())
        self._optimiser = open_optimiser(parameters.items(), config.optimiser)
        self.trained = Trained(parameters, self._optimiser)
        if self._head is not None:
            self.trained = Trained({**parameters, **self._head.state()}, self._optimiser, (self._head.optimiser,))

    def update(self, groups: Sequence[Group], meanwhile: Callable[[], None] = nothing) -> UpdateReport:
        """Learn from whole groups and advance ``version``, also where there is nothing to learn. ``meanwhile`` is
        called after every micro-batch, for others who would wait for the end.

        Raises ``UserError``, the weights being those from before the failing optimiser step, where the loss or the
        gradient is not finite.
        """
        tally = UpdateTally(version=self.version)
        minibatches = self._minibatches(groups)
        proximals = [self._proximals(batches, first=number == 0) for number, batches in enumerate(minibatches)]
        head_gradient = self._begin_head(groups, minibatches)
        for batches, proximal in zip(minibatches, proximals, strict=True):
            for batch, proximal_N in zip(batches, proximal, strict=True):
                self._learn_from(batch, proximal_N, head_gradient, tally)
                meanwhile()
            if batches:
                self._step(tally)
        head_metrics = self._head.step(head_gradient, self.version) if self._head else {}
        ages = lags(groups, self.version)
        self.version += 1
        metrics = {**tally.metrics(), **head_metrics, **group_metrics(groups), **lag_metrics(ages)}
        return UpdateReport(version=self.version, metrics=metrics)

    def tensors(self) -> dict[str, Tensor]:
        """What an engine is to load, by the names that ``Engine.load_weights`` takes, in the policy's own format.

        Tied tensors come once, under the embedding's name; the head's where it is trained. They may be the live ones:
        use them before the next update.
        """
        named = dict(self.policy.backbone.named_parameters())
        if self._head is not None:
            assert self.policy.head is not None
            named |= {HEAD_PREFIX + name: one for name, one in self.policy.head.state_dict().items()}
        return {name: one.detach().to(parameter_dtype(name, one, self._compute_dtype)) for name, one in named.items()}

    def _minibatches(self, groups: Sequence[Group]) -> list[list[LearnBatch]]:
        """The micro-batches of each optimiser step; every minibatch has its share of every group."""
        config = self.config
        traces = [one for group in groups for one in traces_of(group, normalise=config.normalise_advantages)]
        parts = [weighed(traces[first :: config.minibatches], config.mean) for first in range(config.minibatches)]
        learned = [[one for one in part if self._is_learned(one)] for part in parts]
        device = self.policy.device
        return [[one.to(device) for one in learn_batches(part, config.micro_batch_tokens)] for part in learned]

    def _is_learned(self, trace: Trace) -> bool:
        keeps_all = self._reference is not None or not self.config.drop_zero_advantages
        return trace.num_written > 0 and (keeps_all or trace.advantage != 0)

    @torch.no_grad()
    def _proximals(self, batches: Sequence[LearnBatch], *, first: bool) -> list[Tensor | None]:
        """Log-probs from before the update; None for the first minibatch, whose own forward yields them."""
        if first:
            return [None] * len(batches)
        with self._computing():
            return [self._logprobs(one, self._run(one)) for one in batches]

    def _begin_head(self, groups: Sequence[Group], minibatches: Sequence[Sequence[LearnBatch]]) -> HeadGradient | None:
        if self._head is None:
            return None
        drafts = sum((one.drafts for group in groups for one in group.rollouts), DraftStats())
        rows = [block.rows for batches in minibatches for one in batches for block in one.layout.blocks]
        return self._head.begin(rows, drafts)

    def _learn_from(
        self, batch: LearnBatch, proximal_N: Tensor | None, head_gradient: HeadGradient | None, tally: UpdateTally
    ) -> None:
        """Add a micro-batch's share to the gradients."""
        states = self._accumulate(batch, proximal_N, tally)
        if head_gradient is not None:
            for rows, hiddens in states.hiddens():
                head_gradient.add(rows, hiddens)

    def _step(self, tally: UpdateTally) -> None:
        """One optimiser step."""
        lr = learning_rate(self.version, self._num_updates, self.config.optimiser)
        if not math.isfinite(tally.loss):
            raise UserError(_diverged("loss", self.version))
        norm = update(self._optimiser, lr, self.config.optimiser.max_grad_norm)
        if not math.isfinite(norm):
            raise UserError(_diverged("gradient", self.version))
        tally.stepped(norm, lr)

    def _accumulate(self, batch: LearnBatch, proximal_N: Tensor | None, tally: UpdateTally) -> States:
        """Add a micro-batch's share to the gradient of the update's weighted mean; the backbone's states on it."""
        with self._computing():
            states = self._run(batch)
            current_N = self._logprobs(batch, states)
        before_N = current_N.detach() if proximal_N is None else proximal_N
        logprobs = TokenLogProbs(
            current_N=current_N,
            proximal_N=before_N if self.config.clip_against == "proximal" else batch.behaviour_N,
            behaviour_N=batch.behaviour_N,
            reference_N=self._reference_logprobs(batch),
            rollout_N=batch.rollout_N,
        )
        loss = policy_loss(logprobs, batch.advantages_N, self.config.clip)
        (loss.loss_N * batch.weights_N).sum().backward()
        tally.add(batch, loss, before_N)
        return states

    def _run(self, batch: LearnBatch, policy: Policy | None = None) -> States:
        return run_layout(policy or self.policy, batch.layout, share=self.config.share_prompts)

    def _logprobs(self, batch: LearnBatch, states: States, policy: Policy | None = None) -> Tensor:
        """Of the written tokens, under the rollouts' sampling distribution."""
        return token_logprobs(policy or self.policy, states.before_NH, batch.layout.written_N, self._sampling)

    @torch.no_grad()
    def _reference_logprobs(self, batch: LearnBatch) -> Tensor | None:
        if self._reference is None:
            return None
        with self._computing():
            return self._logprobs(batch, self._run(batch, self._reference), self._reference)

    def _computing(self) -> torch.autocast:
        """Matrix products in the format that the policy came in; the weights themselves are float32."""
        return torch.autocast(
            self.policy.device.type, self._compute_dtype, enabled=self._compute_dtype != torch.float32
        )


def _frozen_copy(policy: Policy) -> Policy:
    return Policy(backbone=copy.deepcopy(policy.backbone).requires_grad_(False).eval(), contract=policy.contract)


def _diverged(what: str, version: int) -> str:
    return (
        f"the {what} of update {version + 1} is not finite; lower learner.optimiser.lr and resume from the last "
        "checkpoint, which is whole"
    )
