"""Speed of the learner: an update with prompts shared by the attempts at a problem, against whole rollouts.

The policy plays the rollouts itself; every other attempt is then given reward 1, so that each of them is learned from.
Both arms run in turn within every repetition, and ratios are taken within one. On one
CPU thread, time is processor time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bebop.bench.timing import now, spread
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.errors import UserError
from bebop.hardware import accelerators, processor
from bebop.models.policy import Policy
from bebop.rl.learner import Learner
from bebop.rl.learner_config import LearnerConfig
from bebop.rl.records import Group
from bebop.tasks.base import Outcome, Split
from bebop.tasks.chat import chat_of
from bebop.tasks.episodes import EpisodePlan, EpisodeSettings, Rollout, run_episodes
from bebop.tasks.registry import load_task

ARMS = {"whole": False, "shared": True}
"""Arm -> ``share_prompts``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnBench:
    """What is measured."""

    tasks: tuple[str, ...] = ("math", "code", "agent")
    groups: int = 12
    """Problems per update; the tasks take turns."""
    group_size: int = 8
    micro_batch_tokens: int = 4096
    repetitions: int = 5

    def __post_init__(self) -> None:
        if min(self.groups, self.group_size - 1, self.micro_batch_tokens, self.repetitions) < 1 or not self.tasks:
            raise UserError("groups, tokens and repetitions must be 1 or more, group size 2; raise the one that is not")


def bench_learn(
    policy: Policy, groups: Sequence[Group], bench: LearnBench, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure both arms on ``groups``; -> JSON-able figures, seconds and ratios. The policy stays as it is."""
    learners = {
        label: Learner(
            Policy(backbone=copy.deepcopy(policy.backbone), contract=policy.contract),
            LearnerConfig(micro_batch_tokens=bench.micro_batch_tokens, share_prompts=shares),
            num_updates=bench.repetitions + 1,
        )
        for label, shares in ARMS.items()
    }
    seconds: dict[str, list[float]] = {label: [] for label in ARMS}
    for repetition in range(bench.repetitions + 1):
        for label, learner in learners.items():
            start = now(policy.device)
            learner.update(groups)
            if repetition:
                seconds[label].append(now(policy.device) - start)
        report(f"repetition {repetition} of {bench.repetitions} done")
    rollouts = [one for group in groups for one in group.rollouts]
    return {
        "bench": asdict(bench),
        "machine": {"processor": processor().name, "accelerators": accelerators(), "threads": torch.get_num_threads()},
        "tokens": sum(len(one.tokens) for one in rollouts),
        "written": sum(one.num_model_tokens for one in rollouts),
        "seconds": {label: spread(values) for label, values in seconds.items()},
        "speed_over_whole": spread([a / b for a, b in zip(seconds["whole"], seconds["shared"], strict=True)]),
    }


def played_groups(policy: Policy, bench: LearnBench) -> list[Group]:
    """Rollouts of the tasks' train splits at temperature 1; every other attempt is rewarded."""
    chat = chat_of(policy.tokenizer)
    tasks = [load_task(name) for name in bench.tasks]
    problems = [
        (tasks[number % len(tasks)], tasks[number % len(tasks)].problem(Split.TRAIN, number // len(tasks)))
        for number in range(bench.groups)
    ]
    plans = [
        EpisodePlan(task=task, problem=problem, seed=seed)
        for task, problem in problems
        for seed in range(bench.group_size)
    ]
    engine = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=0))
    found: dict[tuple[str, int], Rollout] = {}
    for one in run_episodes(engine, chat, plans, EpisodeSettings()):
        outcome = Outcome(reward=float(one.plan.seed % 2), reason="every other")
        found[one.plan.problem.id, one.plan.seed] = replace(one, outcome=outcome)
    engine.close()
    return [
        Group(number=number, rollouts=tuple(found[problem.id, seed] for seed in range(bench.group_size)))
        for number, (_, problem) in enumerate(problems)
    ]
