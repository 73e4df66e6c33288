"""Rows for a person and for analysis: sampled episodes token by token, and tokens binned by entropy."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from bebop.engines.base import Completion, TokenSource
from bebop.rl.records import Group
from bebop.tasks.chat import decode
from bebop.tasks.episodes import Rollout

ENTROPY_EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0, math.inf)
"""Nats; bin i holds entropies from edge i up to, but without, edge i + 1."""


def chosen_rollouts(groups: Sequence[Group], num_wanted: int, step: int) -> list[Rollout]:
    """One episode of each of the first groups, another attempt every step."""
    return [group.rollouts[step % len(group.rollouts)] for group in groups[:num_wanted]]


def transcript_row(step: int, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """An episode with what is known of every token that the policy wrote; JSON has no infinity, so it is spelt, and an
    entropy that the engine did not record is null."""
    return {
        "step": step,
        "task": rollout.plan.task.name,
        "problem": rollout.plan.problem.id,
        "reward": rollout.outcome.reward,
        "reason": rollout.outcome.reason,
        "turns": [
            {"given": decode(tokenizer, turn.given_tokens), "tokens": token_rows(turn.completion, tokenizer)}
            for turn in rollout.turns
        ],
    }


def token_rows(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    columns = (
        [decode(tokenizer, [token]) for token in completion.tokens],
        completion.tokens,
        [source.value for source in completion.sources],
        completion.logprobs,
        [None if math.isnan(one) else one for one in completion.entropies],
        completion.versions,
        ["-Infinity" if one == -math.inf else one for one in completion.draft_logprobs],
        completion.overlaps,
    )
    names = ("text", "id", "source", "logprob", "entropy", "version", "draft_logprob", "overlap")
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def bins_row(step: int, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Positions at which a draft was judged, binned by the entropy of the target's distribution there."""
    num_bins = len(ENTROPY_EDGES) - 1
    columns = {name: [0.0] * num_bins for name in ("count", "entropy_sum", "overlap_sum", "accepted", "drafted")}
    for rollout in rollouts:
        for turn in rollout.turns:
            add_to_bins(columns, turn.completion)
    return {"step": step, "edges": [*ENTROPY_EDGES[:-1], "inf"], **columns}


def add_to_bins(columns: dict[str, list[float]], completion: Completion) -> None:
    judged = zip(completion.sources, completion.entropies, completion.overlaps, strict=True)
    for source, entropy, overlap in judged:
        if overlap is not None:
            place = bisect.bisect_right(ENTROPY_EDGES, max(0.0, entropy)) - 1
            columns["count"][place] += 1
            columns["drafted"][place] += 1
            columns["entropy_sum"][place] += entropy
            columns["overlap_sum"][place] += overlap
            columns["accepted"][place] += source is TokenSource.DRAFTED
