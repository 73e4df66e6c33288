"""Groups of finished episodes -> micro-batches of tokens with what the loss needs beside each.

Shapes: B rollouts of a micro-batch, N tokens that the policy wrote, rollout by rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from bebop.core.grpo import group_advantages
from bebop.rl.prompt_sharing import Layout, lay_out, prompt_length
from bebop.rl.records import Group
from bebop.tasks.chat import Transcript
from bebop.tasks.episodes import Rollout

MeanKind = Literal["token", "rollout"]
"""The loss of an update: the mean over all its tokens, or over rollouts of the mean over their tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One rollout as it is learned from; the per-token tuples run over the tokens that the policy wrote."""

    transcript: Transcript
    behaviour: tuple[float, ...]
    """Log-probs of the sampler, nats."""
    versions: tuple[int, ...]
    """Which weights sampled each token."""
    advantage: float
    token_weight: float = 0.0
    """What the loss of each token counts for in the update; see ``weighed``."""

    @property
    def num_tokens(self) -> int:
        return len(self.transcript.tokens)

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the attempts at one problem have in common."""
        return tuple(self.transcript.tokens[: prompt_length(self.transcript)])

    @property
    def num_written(self) -> int:
        return len(self.behaviour)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnBatch:
    """Some traces, sorted by length."""

    layout: Layout
    behaviour_N: Tensor
    """float32, as are the next two."""
    advantages_N: Tensor
    weights_N: Tensor
    """Of each token's loss; over an update's micro-batches they add up to 1, less what was left out."""
    versions_N: Tensor
    rollout_N: Tensor
    """Which trace the token is of."""

    def to(self, device: torch.device) -> LearnBatch:
        return LearnBatch(
            layout=self.layout.to(device),
            behaviour_N=self.behaviour_N.to(device),
            advantages_N=self.advantages_N.to(device),
            weights_N=self.weights_N.to(device),
            versions_N=self.versions_N.to(device),
            rollout_N=self.rollout_N.to(device),
        )


def traces_of(group: Group, *, normalise: bool = True) -> list[Trace]:
    """The group's rollouts with their advantages."""
    rewards_G = torch.tensor(group.rewards, dtype=torch.float64)
    advantages = group_advantages(rewards_G, normalise=normalise).tolist()
    return [trace_of(one, advantage) for one, advantage in zip(group.rollouts, advantages, strict=True)]


def trace_of(rollout: Rollout, advantage: float) -> Trace:
    completions = [turn.completion for turn in rollout.turns]
    return Trace(
        transcript=Transcript(list(rollout.tokens), list(rollout.is_model)),
        behaviour=tuple(chain.from_iterable(one.logprobs for one in completions)),
        versions=tuple(chain.from_iterable(one.versions for one in completions)),
        advantage=advantage,
    )


def weighed(traces: Sequence[Trace], mean: MeanKind) -> list[Trace]:
    """The traces of one update with the weight of each of their tokens."""
    num_written = sum(one.num_written for one in traces)
    num_rollouts = sum(one.num_written > 0 for one in traces)

    def weight(one: Trace) -> float:
        if one.num_written == 0:
            return 0.0
        return 1 / num_written if mean == "token" else 1 / (num_rollouts * one.num_written)

    return [replace(one, token_weight=weight(one)) for one in traces]


def learn_batches(traces: Sequence[Trace], token_budget: int) -> list[LearnBatch]:
    """Cut into micro-batches of at most ``token_budget`` distinct tokens; attempts at one problem follow one another.

    A trace that is longer is alone.
    """
    batches: list[list[Trace]] = [[]]
    size, prompts = 0, set[tuple[int, ...]]()
    for one in traces:
        prompt = one.prompt
        cost = one.num_tokens - (len(prompt) if prompt in prompts else 0)
        if batches[-1] and size + cost > token_budget:
            batches.append([])
            size, cost, prompts = 0, one.num_tokens, set()
        batches[-1].append(one)
        prompts.add(prompt)
        size += cost
    return [learn_batch(some) for some in batches if some]


def learn_batch(unsorted: Sequence[Trace]) -> LearnBatch:
    traces = sorted(unsorted, key=lambda one: one.num_tokens)
    counts_B = torch.tensor([one.num_written for one in traces])

    def spread(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(counts_B)

    return LearnBatch(
        layout=lay_out([one.transcript for one in traces]),
        behaviour_N=torch.tensor(list(chain.from_iterable(one.behaviour for one in traces)), dtype=torch.float32),
        advantages_N=spread([one.advantage for one in traces]),
        weights_N=spread([one.token_weight for one in traces]),
        versions_N=torch.tensor(list(chain.from_iterable(one.versions for one in traces)), dtype=torch.long),
        rollout_N=torch.arange(len(traces)).repeat_interleave(counts_B),
    )
