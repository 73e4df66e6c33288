"""The rollout worker: a policy, an engine and the tasks. A plain object that any placement can hold."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from bebop.errors import UserError
from bebop.models.devices import chosen_device, chosen_dtype
from bebop.models.policy import Policy, load_policy
from bebop.rl.engines import TimedEngine, open_engine
from bebop.rl.jobs import Job
from bebop.rl.messages import Finished, Loaded, PlayedTurn, Start, Weights
from bebop.rl.records import Busy
from bebop.tasks.chat import chat_of
from bebop.tasks.episodes import EpisodePlan, EpisodeSettings, Rollout, Scoring, run_episodes
from bebop.tasks.registry import load_tasks


class RolloutWorker:
    """Plays jobs with the weights it was given last."""

    def __init__(self, start: Start) -> None:
        torch.set_num_threads(start.rollout.threads)
        self._policy = open_policy(start)
        self._engine = TimedEngine(open_engine(self._policy, start.rollout, start.mtp))
        self.chat = chat_of(self._policy.tokenizer, start.rollout.thinking)
        self._tasks = load_tasks(start.tasks, start.seed)
        self._settings = EpisodeSettings(sampling=start.rollout.sampling, max_turn_tokens=start.rollout.max_turn_tokens)
        threads = start.rollout.scoring_threads
        self._scoring = Scoring(pool=ThreadPoolExecutor(threads) if threads else None, ordered=start.ordered)
        self._no_load_waits = threading.Event()
        self._no_load_waits.set()
        self.version = 0
        if start.weights is not None:
            self.load(start.weights)

    def load(self, weights: Weights) -> Loaded:
        """Take the weights at the next round boundary, from whichever thread, and say what the engine then holds."""
        self._no_load_waits.clear()
        try:
            self._engine.load_weights(weights.version, load_file(Path(weights.path)))
        finally:
            self._no_load_waits.set()
        self.version = weights.version
        return self.loaded()

    def loaded(self) -> Loaded:
        return Loaded(version=self.version, held=self._engine.held_digests(self._policy))

    def play(self, jobs: Iterable[Job | None]) -> Iterator[Finished]:
        """Episodes as they end; None among the jobs says that none waits. Ends when everything taken is played."""
        places: dict[tuple[str, int], tuple[str, int]] = {}

        def plans() -> Iterator[EpisodePlan | None]:
            for job in jobs:
                if job is None:
                    yield None
                    continue
                wanted = job.plans(self._tasks)
                for attempt in job.wanted:
                    places[wanted[attempt].problem.id, wanted[attempt].seed] = job.id, attempt
                    yield wanted[attempt]

        for rollout in run_episodes(self._engine, self.chat, plans(), self._settings, self._scoring):
            job_id, attempt = places.pop((rollout.plan.problem.id, rollout.plan.seed))
            yield finished(job_id, attempt, rollout, self._engine.take_busy())
            # The engine's lock is taken again at once by whoever released it; a thread with new weights comes first.
            self._no_load_waits.wait()


def open_policy(start: Start) -> Policy:
    """The policy that the run started from, ready to play."""
    device = chosen_device(start.rollout.device)
    head = "none" if start.mtp.mode == "none" else "auto"
    policy = load_policy(start.policy, dtype=chosen_dtype(start.rollout.dtype, device), device=device, head=head)
    if policy.head is None and head == "auto":
        raise UserError(f"the policy {start.policy} has no MTP head; train one with train-mtp, or set mtp.mode=none")
    return policy


def finished(job_id: str, attempt: int, rollout: Rollout, generation: Busy) -> Finished:
    turns = (PlayedTurn(given_tokens=one.given_tokens, completion=one.completion) for one in rollout.turns)
    return Finished(
        job=job_id,
        attempt=attempt,
        turns=tuple(turns),
        outcome=rollout.outcome,
        scoring_seconds=rollout.scoring_seconds,
        generation=generation,
    )
