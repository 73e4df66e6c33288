"""How good a policy is at tasks, and how uncertain: reward, entropy, reasons and lengths per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from bebop.engines.base import DraftStats
from bebop.runs import Mean
from bebop.tasks.base import Split, Task
from bebop.tasks.episodes import EpisodePlan, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """Sums over the rollouts of one task."""

    task: str
    reward: Mean
    """Per episode."""
    entropy: Mean
    """Nats per token the policy wrote, under the sampling distribution."""
    turns: Mean
    tokens: Mean
    """Tokens the policy wrote, per episode."""
    reasons: dict[str, int]
    """How the episodes ended."""
    drafts: DraftStats


def plans(tasks: Sequence[Task], split: Split, problems: range, attempts: int = 1) -> Iterator[EpisodePlan]:
    """``attempts`` tries at each of the tasks' problems, tasks in turn."""
    for index in problems:
        for task in tasks:
            problem = task.problem(split, index)
            for attempt in range(attempts):
                yield EpisodePlan(task=task, problem=problem, seed=attempt)


def score(task: str, rollouts: Iterable[Rollout]) -> TaskScore:
    """Add up the rollouts of one task."""
    mine = [one for one in rollouts if one.plan.task.name == task]
    return TaskScore(
        task=task,
        reward=Mean(total=sum(one.outcome.reward for one in mine), count=len(mine)),
        entropy=Mean(total=sum(one.entropy_sum for one in mine), count=sum(one.num_model_tokens for one in mine)),
        turns=Mean(total=sum(len(one.turns) for one in mine), count=len(mine)),
        tokens=Mean(total=sum(one.num_model_tokens for one in mine), count=len(mine)),
        reasons=dict(Counter(one.outcome.reason for one in mine).most_common()),
        drafts=reduce(add, (one.drafts for one in mine), DraftStats()),
    )
