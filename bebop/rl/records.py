"""What passes between the stations of the loop."""

from __future__ import annotations

from dataclasses import dataclass

from bebop.tasks.episodes import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Finished attempts at one problem, which are compared with one another alone."""

    number: int
    """Place of the problem in the run's data order, from 0."""
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(one.outcome.reward for one in self.rollouts)
