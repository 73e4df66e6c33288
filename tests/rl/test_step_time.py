"""What steps wait for: an evaluation lends the workers no time, and a learner that learns keeps them busy.

The loop, its intake and its gate on a clock of their own, with one worker that plays a group at a time.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from bebop.engines.base import DraftStats
from bebop.rl import clock, loop
from bebop.rl.config import TrainRL
from bebop.rl.gate import LagGate
from bebop.rl.intake import Intake, IntakeOptions
from bebop.rl.learner import UpdateReport
from bebop.rl.records import Busy

STEPS = 20
GROUP_SECONDS = 1.5
"""What a step's one group takes to play."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0


class OneWorker:
    """A fleet that plays jobs one after the other, in the order in which they were issued.

    Groups of even number teach nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: dict[str, float] = {}
        self._unheard: set[str] = set()

    def issue(self, jobs: Any) -> None:
        for job in jobs:
            begins = max([self._clock.now, *self._ends.values()])
            self._ends[job.id] = begins + GROUP_SECONDS
            self._unheard.add(job.id)

    def hear(self) -> None:
        """It is known at once when a job has ended."""

    def is_done(self, id: str) -> bool:
        return self._ends[id] <= self._clock.now

    def wait(self, ids: Any, is_called_off: Any = None) -> None:
        self._clock.now = max([self._clock.now, *(self._ends[one] for one in ids)])

    def gather(self, ids: Any) -> list[tuple[Any, ...]]:
        self.wait(ids)
        return [(rollout(0.0), rollout(float(int(one[-1]) % 2))) for one in ids]

    def take_generation(self) -> Busy:
        heard = {one for one in self._unheard if self.is_done(one)}
        self._unheard -= heard
        return Busy(seconds=GROUP_SECONDS * len(heard))


def rollout(reward: float) -> Any:
    return SimpleNamespace(
        num_model_tokens=1,
        entropy_sum=0.5,
        drafts=DraftStats(),
        scoring_seconds=0.0,
        outcome=SimpleNamespace(reward=reward),
        plan=SimpleNamespace(task=SimpleNamespace(name="math")),
    )


class Learner:
    """Its updates are of two micro-batches."""

    def __init__(self, clock: Clock, seconds: float, looks_up: bool) -> None:
        self._clock, self._seconds, self._looks_up = clock, seconds, looks_up
        self.version = 0

    def update(self, groups: Any, meanwhile: Callable[[], None]) -> UpdateReport:
        for _ in range(2):
            self._clock.now += self._seconds / 2
            if self._looks_up:
                meanwhile()
        self.version += 1
        return UpdateReport(version=self.version, metrics={})


def played(
    monkeypatch: pytest.MonkeyPatch,
    *,
    every: int,
    max_lag: int,
    update_seconds: float,
    max_replaced: int = 0,
    looks_up: bool = True,
) -> dict[str, float]:
    """Seconds of all steps: of a run whose evaluations are of one problem, and which publishes and writes nothing."""
    time = Clock()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: time.now))
    for name in ("publish", "write_rows", "save"):
        monkeypatch.setattr(loop, name, lambda *_: None)
    config = TrainRL.model_validate(
        {"policy": "tiny", "tasks": [{"name": "math"}], "run": "a", "output": "b", "steps": STEPS}
        | {"async": {"max_lag": max_lag}, "groups_per_step": 1, "evaluation": {"every": every, "problems": 1}},
        strict=False,
    )
    fleet = OneWorker(time)
    gate = LagGate(max_lag=max_lag, groups_per_step=1, num_steps=STEPS, max_replaced=max_replaced)
    intake = Intake(gate, fleet, IntakeOptions.of(config))  # type: ignore[arg-type]
    parts = MagicMock(learner=Learner(time, update_seconds, looks_up), fleet=fleet, intake=intake)
    rows: list[dict[str, Any]] = []
    loop.learn(config, parts, MagicMock(), MagicMock(), MagicMock(show=lambda _, metrics: rows.append(metrics)))
    assert sum("heldout_reward" in row for row in rows) == (STEPS // every if every else 0)
    names = ("time/step", "time/exposed_generation", "time/training", "time/generation")
    return {name: sum(row[name] for row in rows) for name in names}


@pytest.mark.parametrize("update_seconds", [0.3, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("max_lag", [0, 1, 2])
def test_an_evaluation_gives_no_step_generation_for_free(
    max_lag: int, update_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = played(monkeypatch, every=0, max_lag=max_lag, update_seconds=update_seconds)
    evaluated = played(monkeypatch, every=5, max_lag=max_lag, update_seconds=update_seconds)
    for name in ("time/generation", "time/training"):
        assert evaluated[name] == pytest.approx(without[name])
    assert without["time/generation"] == pytest.approx(STEPS * GROUP_SECONDS)
    # At the end of the run nothing is left to play beside the last updates, and the more was played ahead, the sooner.
    idle_at_the_end = max(0, max_lag - 1) * GROUP_SECONDS
    for name in ("time/step", "time/exposed_generation"):
        assert without[name] - 1e-6 <= evaluated[name] <= without[name] + idle_at_the_end + 1e-6


def test_a_group_that_teaches_nothing_is_replaced_while_the_learner_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Playing both groups of a step takes as long as an update, so that only a worker that idled is waited for."""
    settings: dict[str, Any] = {"every": 0, "max_lag": 1, "update_seconds": 2 * GROUP_SECONDS, "max_replaced": 9}
    idle, busy = (played(monkeypatch, **settings, looks_up=one)["time/exposed_generation"] for one in (False, True))
    assert busy == pytest.approx(2 * GROUP_SECONDS), "the first step's groups"
    assert idle == pytest.approx(busy + (STEPS - 1) * GROUP_SECONDS)
