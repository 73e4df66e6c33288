"""What passes between the stations of the loop."""

from __future__ import annotations

from dataclasses import dataclass

from bebop.tasks.episodes import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """Time in which engines had something to sample."""

    seconds: float = 0.0
    row_seconds: float = 0.0
    """The integral of the completions that were under way, of which an engine runs as many as it has rows."""

    def __add__(self, other: Busy) -> Busy:
        return Busy(seconds=self.seconds + other.seconds, row_seconds=self.row_seconds + other.row_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Finished attempts at one problem, which are compared with one another alone."""

    number: int
    """Place of the problem in the run's data order, from 0."""
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(one.outcome.reward for one in self.rollouts)

    @property
    def has_variance(self) -> bool:
        """Whether rewards differ; without, no attempt has an advantage."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StepGroups:
    """What was played for one step."""

    learned: tuple[Group, ...]
    """In the order of the data."""
    replaced: tuple[Group, ...] = ()
    """Groups without variance, in whose place others were played."""

    @property
    def rollouts(self) -> list[Rollout]:
        """Of all of them: what figures about rollouts are taken over, as those learned from are a choice."""
        return [one for group in (*self.learned, *self.replaced) for one in group.rollouts]
