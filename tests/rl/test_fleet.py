"""Workers that die, stall, complain or hold the wrong weights."""

import time
from collections.abc import Callable

import pytest

from bebop.errors import UserError
from bebop.rl.fleet import Fleet, FleetOptions, Interrupted, Launch
from bebop.rl.jobs import Job, group_job
from bebop.rl.messages import Failed, Finished, Load, Loaded, Message, Play, Weights
from bebop.rl.records import Busy
from bebop.tasks.base import Outcome
from bebop.tasks.registry import TaskChoice, load_tasks

TASKS = load_tasks((TaskChoice(name="math"),), seed=0)


class ScriptedWorker:
    """Keeps what it is told; the test makes it speak."""

    def __init__(self, place, weights, inbox):
        self.place, self.inbox, self.told, self.is_killed = place, inbox, [], False
        self.last_heard = time.monotonic()
        self.pid = place
        self.says(Loaded(version=weights.version if weights else 0, held={}))

    def says(self, message: Message | None) -> None:
        self.last_heard = time.monotonic()
        self.inbox(self, message)

    def send(self, message: Message) -> None:
        self.told.append(message)
        if isinstance(message, Load):
            self.says(Loaded(version=message.weights.version, held={}))

    def kill(self):
        self.is_killed = True
        self.says(None)

    def close(self):
        pass

    def last_words(self):
        return "was killed by signal 9"

    @property
    def jobs(self) -> list[Job]:
        return [job for message in self.told if isinstance(message, Play) for job in message.jobs]

    def finishes(self, job: Job, attempts: tuple[int, ...]) -> None:
        for attempt in attempts:
            outcome = Outcome(reward=float(attempt), reason="solved")
            self.says(
                Finished(
                    job=job.id,
                    attempt=attempt,
                    turns=(),
                    outcome=outcome,
                    scoring_seconds=0,
                    generation=Busy(seconds=0.5, row_seconds=1.0),
                )
            )


class Place:
    """A fleet and every worker that it ever had."""

    def __init__(self, num_workers: int = 2, *, check: Callable[[str, Loaded], None] = lambda *_: None, **options):
        self.workers: list[ScriptedWorker] = []
        self.launch: Launch = self.hire
        limits = {"stall_seconds": 60.0, "max_restarts": 2} | options
        self.fleet = Fleet(
            lambda *arguments: self.launch(*arguments), FleetOptions(num_workers=num_workers, **limits), TASKS, check
        )
        self.fleet.start(None)

    def hire(self, place, weights, inbox):
        worker = ScriptedWorker(place, weights, inbox)
        self.workers.append(worker)
        return worker


def job(number: int) -> Job:
    return group_job(number, ["math"], 3, seed=0)


def test_jobs_go_to_who_has_least_to_do_and_come_back_in_order():
    place = Place()
    place.fleet.issue([job(0), job(1), job(2)])
    first, second = place.workers
    assert [one.number for one in first.jobs] == [0, 2]
    assert [one.number for one in second.jobs] == [1]
    second.finishes(job(1), (2, 0, 1))
    first.finishes(job(0), (1, 2, 0))
    rollouts = place.fleet.gather(["group/0", "group/1"])
    assert [[one.outcome.reward for one in group] for group in rollouts] == [[0, 1, 2], [0, 1, 2]]
    assert [one.plan.seed for one in rollouts[1]] == list(job(1).seeds)
    assert place.fleet.take_generation() == Busy(seconds=3.0, row_seconds=6.0)
    place.fleet.issue([job(3)])
    assert [one.number for one in second.jobs] == [1, 3]


def test_what_was_said_is_heard_without_waiting_for_more():
    place = Place(num_workers=1)
    place.fleet.issue([job(0)])
    (worker,) = place.workers
    worker.finishes(job(0), (0, 1))
    place.fleet.hear()
    assert not place.fleet.is_done("group/0")
    worker.finishes(job(0), (2,))
    assert not place.fleet.is_done("group/0")
    place.fleet.hear()
    assert place.fleet.is_done("group/0")


def test_a_worker_that_dies_is_replaced_and_what_it_owed_is_played_again():
    place = Place(num_workers=1)
    place.fleet.spread(Weights(version=4, path="w"))
    place.fleet.issue([job(0), job(1)])
    (old,) = place.workers
    old.finishes(job(0), (1,))
    old.says(None)
    old.finishes(job(1), (0, 1, 2))  # too late: from the grave
    with pytest.raises(Interrupted):
        place.fleet.gather(["group/0"], lambda: len(place.workers) == 2)
    new = place.workers[-1]
    assert [(one.number, one.wanted) for one in new.jobs] == [(0, (0, 2)), (1, (0, 1, 2))]
    new.finishes(new.jobs[0], (0, 2))
    new.finishes(new.jobs[1], (0, 1, 2))
    assert [len(one) for one in place.fleet.gather(["group/0", "group/1"])] == [3, 3]
    assert place.fleet.num_restarts == 1


def test_a_worker_that_keeps_dying_stops_the_run():
    place = Place(num_workers=1)
    place.fleet.issue([job(0)])

    def die_at_once(*arguments):
        worker = place.hire(*arguments)
        worker.says(None)
        return worker

    place.launch = die_at_once
    place.workers[0].says(None)
    with pytest.raises(UserError, match=r"worker 0 was killed by signal 9 \(2 replacements did no better\)"):
        place.fleet.gather(["group/0"])


def test_a_worker_that_works_between_its_deaths_may_die_often():
    place = Place(num_workers=1, max_restarts=1)
    place.fleet.issue([job(number) for number in range(5)])
    for number in range(5):
        place.workers[-1].finishes(job(number), (0,))
        place.workers[-1].says(None)
        with pytest.raises(Interrupted):
            place.fleet.gather([f"group/{number}"], lambda number=number: len(place.workers) == number + 2)
        place.workers[-1].finishes(job(number), (1, 2))
        place.fleet.gather([f"group/{number}"])


def test_a_worker_with_work_that_says_nothing_is_killed_and_replaced():
    place = Place(num_workers=2, stall_seconds=0.5)
    place.fleet.issue([job(0)])
    stuck, idle = place.workers
    with pytest.raises(Interrupted):
        place.fleet.gather(["group/0"], lambda: len(place.workers) == 3)
    assert stuck.is_killed and not idle.is_killed
    assert [one.number for one in place.workers[-1].jobs] == [0]


def test_what_a_worker_cannot_do_is_said_with_its_name():
    place = Place()
    place.fleet.issue([job(0)])
    place.workers[1].says(Failed(sentence="there is no bubblewrap; install it"))
    with pytest.raises(UserError, match="worker 1: there is no bubblewrap"):
        place.fleet.gather(["group/0"])


def test_every_worker_is_checked_after_every_publication_and_replacement():
    checked = []
    place = Place(check=lambda name, loaded: checked.append((name, loaded.version)))
    place.fleet.spread(Weights(version=1, path="w"))
    place.fleet.issue([job(0)])
    place.workers[0].says(None)
    place.workers[1].says(Loaded(version=0, held={}))  # of weights that were replaced meanwhile
    with pytest.raises(Interrupted):
        place.fleet.gather(["group/0"], lambda: len(checked) == 5)
    assert checked == [("worker 0", 0), ("worker 1", 0), ("worker 0", 1), ("worker 1", 1), ("worker 0", 1)]


def test_a_learner_that_never_has_to_wait_can_be_called_off():
    place = Place(num_workers=1)
    place.fleet.issue([job(0)])
    place.workers[0].finishes(job(0), (0, 1, 2))
    place.fleet.spread(Weights(version=1, path="w"))
    with pytest.raises(Interrupted):
        place.fleet.gather(["group/0"], lambda: True)
