"""Metrics of rollouts, as sums and counts under the names that ``metrics.jsonl`` has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from bebop.engines.base import DraftStats
from bebop.metrics import Mean
from bebop.tasks.episodes import Rollout

Metrics = dict[str, Mean | float]


def reward_metrics(rollouts: Sequence[Rollout], name: str = "reward") -> Metrics:
    """The reward per episode, overall and as ``NAME/<task>``."""
    found = {name: Mean()}
    for one in rollouts:
        for key in (name, f"{name}/{one.plan.task.name}"):
            found[key] = found.get(key, Mean()) + Mean(one.outcome.reward, 1)
    return dict(found)


def token_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    """``tokens`` that the policy wrote, and their ``entropy`` in nats under the sampling distribution."""
    num_tokens = sum(one.num_model_tokens for one in rollouts)
    return {"tokens": num_tokens, "entropy": Mean(sum(one.entropy_sum for one in rollouts), num_tokens)}


def drafts_of(rollouts: Sequence[Rollout]) -> DraftStats:
    return reduce(add, (one.drafts for one in rollouts), DraftStats())


def draft_metrics(drafts: DraftStats) -> Metrics:
    """What became of the drafts; empty where nothing was drafted.

    ``conditional@k``: draft k survived, of the rounds in which the k - 1 before it did. ``survival@k``: drafts 1 to k
    all survived, of the rounds that drafted k. ``overlap@k``: sum_v min(p, q) where depth k was reached.
    """
    if not drafts.num_drafted:
        return {}
    found: Metrics = {
        "mtp/accept_length": Mean(drafts.rounds + drafts.num_accepted, drafts.rounds),
        "mtp/acceptance_rate": Mean(drafts.num_accepted, drafts.num_drafted),
    }
    columns = zip(drafts.drafted, drafts.reached, drafts.accepted, drafts.overlaps, strict=True)
    for depth, (drafted, reached, accepted, overlap) in enumerate(columns, start=1):
        found[f"mtp/conditional@{depth}"] = Mean(accepted, reached)
        found[f"mtp/survival@{depth}"] = Mean(accepted, drafted)
        found[f"mtp/overlap@{depth}"] = Mean(overlap, reached)
    return found
