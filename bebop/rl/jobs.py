"""What a run plays, as a function of its settings: group number -> problem and seeds.

Nothing else is random about the data, so a group that is played again (a worker died, a run was resumed) is the same
group, and a resumed run needs no more than its step to know which problems are next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bebop.tasks.base import Split, Task
from bebop.tasks.episodes import EpisodePlan
from bebop.tasks.turns import problem_of_turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Attempts at one problem, in a form that another process can read."""

    id: str
    """Unique in a run: ``group/17``, ``evaluation/40/3``."""
    number: int
    """Place of the group in the data order; of the problem in an evaluation."""
    task: str
    split: Split
    index: int
    seeds: tuple[int, ...]
    """One per attempt."""
    wanted: tuple[int, ...]
    """Places in ``seeds`` of the attempts to be played: all, or what a worker that died has left."""

    def plans(self, tasks: Mapping[str, Task]) -> list[EpisodePlan]:
        """Every attempt, wanted or not."""
        task = tasks[self.task]
        problem = task.problem(self.split, self.index)
        return [EpisodePlan(task=task, problem=problem, seed=seed) for seed in self.seeds]


def group_id(number: int) -> str:
    """The job's id."""
    return f"group/{number}"


def group_job(number: int, turns: Sequence[str], group_size: int, seed: int) -> Job:
    """Group ``number`` of the run with that seed: a turn of ``tasks.turns``."""
    task, index = problem_of_turn(number, turns)
    return Job(
        id=group_id(number),
        number=number,
        task=task,
        split=Split.TRAIN,
        index=index,
        seeds=tuple(derived_seed(seed, "group", number, attempt) for attempt in range(group_size)),
        wanted=tuple(range(group_size)),
    )


def evaluation_jobs(step: int, tasks: Sequence[str], num_problems: int, seed: int) -> list[Job]:
    """One attempt at each held-out problem, with the same draws at every step."""
    return [
        Job(
            id=f"evaluation/{step}/{index * len(tasks) + place}",
            number=index * len(tasks) + place,
            task=task,
            split=Split.HELDOUT,
            index=index,
            seeds=(derived_seed(seed, "evaluation", index),),
            wanted=(0,),
        )
        for index in range(num_problems)
        for place, task in enumerate(tasks)
    ]


def derived_seed(*words: int | str) -> int:
    """56 bits that depend on the words alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:7], "big")
