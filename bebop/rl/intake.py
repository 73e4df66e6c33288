"""Groups on their way from the workers to the learner: let through, played, kept or replaced, handed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bebop.rl.config import TrainRL
from bebop.rl.fleet import Fleet, never
from bebop.rl.gate import LagGate
from bebop.rl.jobs import group_id, group_job
from bebop.rl.records import Group, StepGroups
from bebop.tasks.turns import task_turns


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeOptions:
    """What is played for a step."""

    turns: tuple[str, ...]
    """Tasks, whose turns come round and round."""
    group_size: int
    seed: int
    in_waves: bool
    """Replace groups only when all that are under way have finished. Else what is played beside what would depend on
    how fast the workers are, and with it the rounding of their numbers."""

    @classmethod
    def of(cls, config: TrainRL) -> IntakeOptions:
        return cls(
            turns=task_turns({one.name: one.share for one in config.tasks}),
            group_size=config.group_size,
            seed=config.seed,
            in_waves=config.max_lag == 0,
        )


class Intake:
    """Every method is called from the learner's thread."""

    def __init__(self, gate: LagGate, fleet: Fleet, options: IntakeOptions) -> None:
        self._gate = gate
        self.fleet = fleet
        self._options = options
        self._kept: dict[int, Group] = {}
        self._replaced: list[Group] = []

    @property
    def position(self) -> int:
        """Where the data of a run that is resumed now goes on."""
        return self._gate.position

    def issue(self, version: int) -> None:
        """Start what the gate lets through at the learner's version, what replaces finished groups included.

        To be called often: a worker whose groups have all finished waits for those that replace them.
        """
        if not self._options.in_waves:
            self.fleet.hear()
            self._settle_finished()
        self._start(version)

    def _start(self, version: int) -> None:
        admitted = self._gate.admit(version)
        options = self._options
        self.fleet.issue(group_job(one, options.turns, options.group_size, options.seed) for one in admitted)

    def gather(self, version: int, is_called_off: Callable[[], bool] = never) -> StepGroups:
        """Wait for the groups of the step after ``version`` updates. ``Interrupted`` when called off."""
        self.fleet.wait((), is_called_off)
        while (numbers := self._gate.take()) is None:
            unsettled = self._gate.unsettled
            waited_for = unsettled if self._options.in_waves else unsettled[:1]
            self.fleet.wait([group_id(one) for one in waited_for], is_called_off)
            self._settle_finished()
            self._start(version)
        replaced, self._replaced = tuple(self._replaced), []
        return StepGroups(learned=tuple(self._kept.pop(one) for one in numbers), replaced=replaced)

    def play_out(self) -> None:
        """Wait until what is under way is played; nothing is started in its place."""
        self.fleet.wait([group_id(one) for one in self._gate.unsettled])

    def _settle_finished(self) -> None:
        """In the order of the data, so that what is replaced does not depend on which group finishes first."""
        while self._gate.unsettled and self.fleet.is_done(group_id(self._gate.unsettled[0])):
            number = self._gate.unsettled[0]
            [rollouts] = self.fleet.gather([group_id(number)])
            group = Group(number=number, rollouts=rollouts)
            if self._gate.settle(teaches=group.has_variance):
                self._kept[number] = group
            else:
                self._replaced.append(group)
