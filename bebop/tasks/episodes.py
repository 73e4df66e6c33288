"""Episodes played by an engine: many at once, one turn at a time, tokens only ever appended.

::

    plans -> opening prompts -> engine.stream -> a turn ends -> episode.step -> outcome, or the next turn's prompt

The engine asks for a request whenever a row is free. Episodes are stepped between two completions, or in threads beside
the generation, which then goes on meanwhile.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from bebop.core.sampling import Sampling
from bebop.engines.base import Completion, DraftStats, PolicyEngine, Request, StopReason
from bebop.tasks.base import Episode, Outcome, Problem, SingleTurn, Task, Turn
from bebop.tasks.chat import Chat, decode

CUT_OFF = {
    StopReason.MAX_TOKENS: "turn too long",
    StopReason.CONTEXT: "context full",
    StopReason.NOT_FINITE: "logits not finite",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodePlan:
    """An attempt to be made."""

    task: Task
    problem: Problem
    seed: int
    """Decides every random draw of the attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeSettings:
    """How turns are sampled."""

    sampling: Sampling = field(default_factory=Sampling)
    max_turn_tokens: int = 256
    num_draft_tokens: int | None = None
    """None: the engine's own setting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """Where episodes are stepped: in the generating thread, or in a pool beside it."""

    pool: Executor | None = None
    ordered: bool = True
    """Step episodes of several turns in the generating thread all the same: the moment at which their next turn is
    ready decides the batch it runs in, and with it the rounding, so in a pool no two runs are equal to the last bit."""

    def in_pool(self, episode: Episode) -> bool:
        return self.pool is not None and (isinstance(episode, SingleTurn) or not self.ordered)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutTurn:
    """What the environment added to the context, and what the policy answered."""

    given_tokens: tuple[int, ...]
    completion: Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A finished episode."""

    plan: EpisodePlan
    turns: tuple[RolloutTurn, ...]
    outcome: Outcome
    scoring_seconds: float = 0.0
    """Time that the episode's own answers took."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The whole context as the policy saw and wrote it."""
        return reduce(add, (turn.given_tokens + turn.completion.tokens for turn in self.turns))

    @property
    def is_model(self) -> tuple[bool, ...]:
        """True on the tokens that the policy wrote."""
        return reduce(
            add, ((False,) * len(turn.given_tokens) + (True,) * len(turn.completion.tokens) for turn in self.turns)
        )

    @property
    def num_model_tokens(self) -> int:
        return sum(len(turn.completion.tokens) for turn in self.turns)

    @property
    def entropy_sum(self) -> float:
        """Nats, over the tokens that the policy wrote."""
        return sum(sum(turn.completion.entropies) for turn in self.turns)

    @property
    def drafts(self) -> DraftStats:
        return reduce(add, (turn.completion.drafts for turn in self.turns), DraftStats())


@dataclass(slots=True)
class Attempt:
    """An episode in progress."""

    plan: EpisodePlan
    episode: Episode
    given_tokens: tuple[int, ...]
    turns: list[RolloutTurn] = field(default_factory=list)
    scoring_seconds: float = 0.0

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """Of the next turn: all that was played, and what the environment added to it."""
        played = [token for turn in self.turns for token in turn.given_tokens + turn.completion.tokens]
        return (*played, *self.given_tokens)

    def request(self, settings: EpisodeSettings, stop_tokens: tuple[int, ...]) -> Request:
        """The next turn as the engine is to sample it."""
        turn = len(self.turns)
        name = f"{self.plan.problem.id}/{self.plan.seed}/{turn}"
        return Request(
            id=name,
            prompt_tokens=self.prompt_tokens,
            max_tokens=settings.max_turn_tokens,
            sampling=settings.sampling,
            seed=int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"),
            num_draft_tokens=settings.num_draft_tokens,
            stop_token_ids=stop_tokens,
            keep_cache=not isinstance(self.episode, SingleTurn),
            continues=self.turns[-1].completion.request_id if self.turns else None,
        )

    def answer(self, text: str | None, stop_reason: StopReason) -> Turn:
        """The episode's answer to the policy's turn; None is a turn that was cut off."""
        if text is None:
            return Turn(outcome=Outcome(reward=0.0, reason=CUT_OFF[stop_reason]))
        started = time.perf_counter()
        turn = self.episode.step(text)
        self.scoring_seconds += time.perf_counter() - started
        return turn

    def rollout(self, outcome: Outcome) -> Rollout:
        return Rollout(plan=self.plan, turns=tuple(self.turns), outcome=outcome, scoring_seconds=self.scoring_seconds)


class Stage:
    """The episodes in progress, between the plans and the engine."""

    def __init__(
        self,
        chat: Chat,
        plans: Iterable[EpisodePlan | None],
        settings: EpisodeSettings,
        scoring: Scoring,
        max_context: int,
    ) -> None:
        self._chat = chat
        self._plans = iter(plans)
        self._settings = settings
        self._scoring = scoring
        self._max_context = max_context
        self._ready: deque[Request] = deque()
        self._playing: dict[str, Attempt] = {}
        self._scored: list[tuple[Attempt, Future[Turn]]] = []
        self._finished: deque[Rollout] = deque()

    def requests(self) -> Iterator[Request | None]:
        """What the engine is to sample; None while turns are sampled or scored and no other plan is ready."""
        while True:
            self._collect()
            if not self._ready and (plan := next(self._plans, None)) is not None:
                self._enqueue(begin(plan, self._chat))
            if self._ready:
                yield self._ready.popleft()
            elif self._playing or self._scored:
                yield None
            else:
                return

    def take(self, completion: Completion) -> None:
        """Give a turn of the policy to its episode."""
        attempt = self._playing.pop(completion.request_id)
        attempt.turns.append(RolloutTurn(given_tokens=attempt.given_tokens, completion=completion))
        reason = completion.stop_reason
        text = None if reason in CUT_OFF else self._chat.said(decode(self._chat.tokenizer, completion.tokens[:-1]))
        pool = self._scoring.pool
        if pool is not None and text is not None and self._scoring.in_pool(attempt.episode):
            self._scored.append((attempt, pool.submit(attempt.answer, text, reason)))
        else:
            self._settle(attempt, attempt.answer(text, reason))

    def finished(self) -> Iterator[Rollout]:
        """The rollouts that have ended since the last call."""
        self._collect()
        while self._finished:
            yield self._finished.popleft()

    def _collect(self) -> None:
        """Take over what the pool has answered."""
        waiting = []
        for attempt, answer in self._scored:
            if answer.done():
                self._settle(attempt, answer.result())
            else:
                waiting.append((attempt, answer))
        self._scored = waiting

    def _settle(self, attempt: Attempt, turn: Turn) -> None:
        """An outcome ends the attempt, and so does a full context; otherwise its next turn is ready."""
        outcome = turn.outcome
        if outcome is None:
            attempt.given_tokens = tuple(self._chat.go_on(turn.messages, attempt.turns[-1].completion.tokens[-1]))
            if len(attempt.prompt_tokens) < self._max_context:
                self._enqueue(attempt)
                return
            outcome = Outcome(reward=0.0, reason=CUT_OFF[StopReason.CONTEXT])
        self._finished.append(attempt.rollout(outcome))

    def _enqueue(self, attempt: Attempt) -> None:
        request = attempt.request(self._settings, self._chat.stop_tokens)
        self._playing[request.id] = attempt
        self._ready.append(request)


def run_episodes(
    engine: PolicyEngine,
    chat: Chat,
    plans: Iterable[EpisodePlan | None],
    settings: EpisodeSettings,
    scoring: Scoring | None = None,
) -> Iterator[Rollout]:
    """Play the plans; rollouts come as they finish.

    Plans are taken as rows become free, and None among them says that none is ready yet. The iterator ends when
    everything taken is played and no plan is ready.
    """
    stage = Stage(chat, plans, settings, scoring or Scoring(), engine.max_context)
    for completion in engine.stream(stage.requests()):
        stage.take(completion)
        yield from stage.finished()
    yield from stage.finished()


def begin(plan: EpisodePlan, chat: Chat) -> Attempt:
    opening = tuple(chat.open(plan.problem.messages))
    return Attempt(plan, plan.task.start(plan.problem), opening)
