"""How old the weights were that sampled the tokens of a step, in updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bebop.metrics import Mean
from bebop.rl.records import Group


def lags(groups: Sequence[Group], version: int) -> Counter[int]:
    """Lag -> number of tokens: ``version``, which is about to learn them, minus the version that sampled each."""
    return Counter(
        version - sampled_by
        for group in groups
        for rollout in group.rollouts
        for turn in rollout.turns
        for sampled_by in turn.completion.versions
    )


def lag_metrics(counts: Counter[int]) -> dict[str, Mean | float]:
    """``lag`` per token, ``lag/max``, and the tokens of each lag as ``lag/count@n``."""
    total = sum(lag * count for lag, count in counts.items())
    return {
        "lag": Mean(total, counts.total()),
        "lag/max": max(counts, default=0),
        **{f"lag/count@{lag}": count for lag, count in sorted(counts.items())},
    }
