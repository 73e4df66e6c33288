"""The workers as one: jobs go out, rollouts come in, weights are spread, who dies is replaced."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bebop.errors import UserError
from bebop.rl.jobs import Job
from bebop.rl.messages import Failed, Finished, Load, Loaded, Message, Play, Weights
from bebop.rl.placement import Inbox, Worker
from bebop.rl.records import Busy
from bebop.tasks.base import Task
from bebop.tasks.episodes import EpisodePlan, Rollout

LOOK_SECONDS = 0.2
"""How often a wait looks up to see whether it was called off."""

Launch = Callable[[int, Weights | None, Inbox], Worker]
"""(place of the worker, newest weights, where it reports) -> the worker."""
Check = Callable[[str, Loaded], None]
"""Raises where the worker of that name holds other tensors than it should."""


class Interrupted(Exception):
    """The wait was called off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetOptions:
    """How many, and how patient."""

    num_workers: int
    stall_seconds: float
    max_restarts: int


@dataclass(slots=True)
class Seat:
    """A worker's place, whoever sits on it."""

    name: str
    worker: Worker
    jobs: dict[str, Job] = field(default_factory=dict)
    """What it has not finished, in the order it was given."""
    num_restarts: int = 0
    """Since an episode was last finished here."""
    version: int = -1
    """Newest weights that the worker has confirmed."""

    @property
    def num_waiting(self) -> int:
        return sum(len(job.wanted) for job in self.jobs.values())


@dataclass(slots=True)
class OpenJob:
    """A job and the rollouts it has so far."""

    plans: Sequence[EpisodePlan]
    rollouts: dict[int, Rollout] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return len(self.rollouts) == len(self.plans)


def never() -> bool:
    return False


class Fleet:
    """Rollout workers, seen from the learner. Every method is called from the learner's thread."""

    def __init__(self, launch: Launch, options: FleetOptions, tasks: Mapping[str, Task], check: Check) -> None:
        self._launch = launch
        self._options = options
        self._tasks = tasks
        self._check = check
        self._events: queue.SimpleQueue[tuple[Worker, Message | None]] = queue.SimpleQueue()
        self._open: dict[str, OpenJob] = {}
        self._seats: list[Seat] = []
        self._weights: Weights | None = None
        self._generation = Busy()
        self.num_restarts = 0

    def start(self, weights: Weights | None) -> None:
        """Start every worker, and wait until it holds the weights; None is the policy that the run started from."""
        self._weights = weights
        for place in range(self._options.num_workers):
            self._seats.append(Seat(name=f"worker {place}", worker=self._seated(place)))
        self._wait(lambda: all(seat.version >= self._version for seat in self._seats))

    def issue(self, jobs: Iterable[Job]) -> None:
        """Hand out jobs, each to the worker with the fewest episodes waiting."""
        given: dict[int, list[Job]] = {}
        for job in jobs:
            place = min(range(len(self._seats)), key=lambda one: self._seats[one].num_waiting)
            self._open[job.id] = OpenJob(plans=job.plans(self._tasks))
            self._seats[place].jobs[job.id] = job
            given.setdefault(place, []).append(job)
        for place, some in given.items():
            self._seats[place].worker.last_heard = time.monotonic()
            self._seats[place].worker.send(Play(jobs=tuple(some)))

    def hear(self) -> None:
        """Take in what workers have said so far, without waiting."""
        while not self._events.empty():
            self._take(*self._events.get())

    def is_done(self, id: str) -> bool:
        """Whether every attempt of the job has finished, as far as was heard; the job must be open."""
        return self._open[id].is_done

    def wait(self, ids: Sequence[str], is_called_off: Callable[[], bool] = never) -> None:
        """Until these jobs are done. ``Interrupted`` when called off."""
        self._wait(lambda: all(self._open[one].is_done for one in ids), is_called_off)

    def gather(self, ids: Sequence[str], is_called_off: Callable[[], bool] = never) -> list[tuple[Rollout, ...]]:
        """Wait for these jobs; the rollouts of each in the order of its attempts. ``Interrupted`` when called off."""
        self.wait(ids, is_called_off)
        done = [self._open.pop(one) for one in ids]
        return [tuple(one.rollouts[attempt] for attempt in range(len(one.plans))) for one in done]

    def spread(self, weights: Weights) -> None:
        """Have every worker take these weights, and check what each then holds."""
        self._weights = weights
        for seat in self._seats:
            seat.worker.last_heard = time.monotonic()
            seat.worker.send(Load(weights=weights))
        self._wait(lambda: all(seat.version >= weights.version for seat in self._seats))

    def take_generation(self) -> Busy:
        """Over all workers, as reported since the last call."""
        busy, self._generation = self._generation, Busy()
        return busy

    @property
    def _version(self) -> int:
        return self._weights.version if self._weights is not None else 0

    @property
    def pids(self) -> list[int]:
        return [seat.worker.pid for seat in self._seats]

    def close(self) -> None:
        for seat in self._seats:
            seat.worker.close()

    def _wait(self, is_over: Callable[[], bool], is_called_off: Callable[[], bool] = never) -> None:
        """Take in what workers say until it is over. A learner that never has to wait can be called off, too."""
        if is_called_off():
            raise Interrupted
        while not is_over():
            if is_called_off():
                raise Interrupted
            try:
                worker, message = self._events.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._replace_stalled()
                continue
            self._take(worker, message)

    def _take(self, worker: Worker, message: Message | None) -> None:
        seat = next((one for one in self._seats if one.worker is worker), None)
        if seat is None:  # it was replaced
            return
        match message:
            case Finished():
                self._take_episode(seat, message)
            case Loaded():
                # What a worker says of weights that were replaced meanwhile is no news.
                if message.version == self._version:
                    self._check(seat.name, message)
                seat.version = message.version
            case Failed():
                raise UserError(f"{seat.name}: {message.sentence}")
            case None:
                self._replace(seat)
            case _:
                raise AssertionError(f"a worker does not say {message!r}")

    def _take_episode(self, seat: Seat, message: Finished) -> None:
        self._generation += message.generation
        seat.num_restarts = 0
        job, entry = seat.jobs[message.job], self._open[message.job]
        entry.rollouts[message.attempt] = message.rollout(entry.plans[message.attempt])
        left = tuple(one for one in job.wanted if one != message.attempt)
        if left:
            seat.jobs[job.id] = replace(job, wanted=left)
        else:
            del seat.jobs[job.id]

    def _replace_stalled(self) -> None:
        """Kill who has work and says nothing; the end of its process then comes in like any other."""
        now = time.monotonic()
        for seat in self._seats:
            is_busy = bool(seat.jobs) or seat.version < self._version
            if is_busy and now - seat.worker.last_heard > self._options.stall_seconds:
                seat.worker.kill()

    def _replace(self, seat: Seat) -> None:
        """A new worker takes the seat, and its unfinished attempts are played again."""
        words = seat.worker.last_words()
        if seat.num_restarts >= self._options.max_restarts:
            raise UserError(
                f"{seat.name} {words} ({seat.num_restarts} replacements did no better); mend the cause and start the "
                "same command again, which resumes"
            )
        seat.num_restarts += 1
        self.num_restarts += 1
        seat.version = -1
        seat.worker = self._seated(self._seats.index(seat))
        if seat.jobs:
            seat.worker.send(Play(jobs=tuple(seat.jobs.values())))

    def _seated(self, place: int) -> Worker:
        return self._launch(place, self._weights, lambda worker, message: self._events.put((worker, message)))
