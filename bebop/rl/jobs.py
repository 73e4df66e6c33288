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


def task_turns(shares: Mapping[str, int]) -> tuple[str, ...]:
    """Whose turn it is, group by group, in a cycle that has every task as often as its share; turns are spread evenly.

    Every turn goes to the task that is furthest behind its share, the one named first where two are.
    """
    num_turns, turns = sum(shares.values()), []
    for place in range(1, num_turns + 1):
        turns.append(max(shares, key=lambda name: place * shares[name] - num_turns * turns.count(name)))
    return tuple(turns)


def group_id(number: int) -> str:
    """The job's id."""
    return f"group/{number}"


def group_job(number: int, turns: Sequence[str], group_size: int, seed: int) -> Job:
    """Group ``number`` of the run with that seed; ``turns`` come round and round, problems are never repeated."""
    cycle, place = divmod(number, len(turns))
    task = turns[place]
    return Job(
        id=group_id(number),
        number=number,
        task=task,
        split=Split.TRAIN,
        index=cycle * turns.count(task) + turns[:place].count(task),
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
