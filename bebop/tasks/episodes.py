"""Episodes played by an engine: many at once, one turn at a time, tokens only ever appended.

::

    plans -> opening prompts -> engine.stream -> a turn ends -> episode.step -> outcome, or the next turn's prompt
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from transformers import PreTrainedTokenizerBase

from bebop.core.sampling import Sampling
from bebop.engines.base import Completion, DraftStats, Engine, Request, StopReason
from bebop.tasks.base import Episode, Outcome, Problem, Task
from bebop.tasks.chat import continue_prompt, decode, end_of_turn, open_prompt

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

    def request(self, settings: EpisodeSettings, stop_token: int) -> Request:
        """The next turn as the engine is to sample it."""
        turn = len(self.turns)
        name = f"{self.plan.problem.id}/{self.plan.seed}/{turn}"
        before = [token for turn in self.turns for token in turn.given_tokens + turn.completion.tokens]
        return Request(
            id=name,
            prompt_tokens=(*before, *self.given_tokens),
            max_tokens=settings.max_turn_tokens,
            sampling=settings.sampling,
            seed=int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"),
            num_draft_tokens=settings.num_draft_tokens,
            stop_token_ids=(stop_token,),
        )

    def take(self, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> Outcome | None:
        """Give the turn to the episode; an outcome ends it, otherwise the next turn's tokens are ready."""
        self.turns.append(RolloutTurn(given_tokens=self.given_tokens, completion=completion))
        if completion.stop_reason in CUT_OFF:
            return Outcome(reward=0.0, reason=CUT_OFF[completion.stop_reason])
        turn = self.episode.step(decode(tokenizer, completion.tokens[:-1]))
        if turn.outcome is None:
            self.given_tokens = tuple(continue_prompt(tokenizer, turn.messages))
        return turn.outcome


def run_episodes(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, plans: Sequence[EpisodePlan], settings: EpisodeSettings
) -> Iterator[Rollout]:
    """Play every plan to its end; rollouts come as they finish."""
    ready: deque[Request] = deque()
    playing: dict[str, Attempt] = {}
    waiting = iter(plans)

    def next_turn(attempt: Attempt) -> None:
        request = attempt.request(settings, end_of_turn(tokenizer))
        playing[request.id] = attempt
        ready.append(request)

    def requests() -> Iterator[Request | None]:
        while True:
            if not ready and (plan := next(waiting, None)) is not None:
                next_turn(begin(plan, tokenizer))
            if not ready and not playing:
                return
            yield ready.popleft() if ready else None

    for completion in engine.stream(requests()):
        attempt = playing.pop(completion.request_id)
        outcome = attempt.take(completion, tokenizer)
        if outcome is None:
            next_turn(attempt)
        else:
            yield Rollout(plan=attempt.plan, turns=tuple(attempt.turns), outcome=outcome)


def begin(plan: EpisodePlan, tokenizer: PreTrainedTokenizerBase) -> Attempt:
    opening = tuple(open_prompt(tokenizer, plan.problem.messages))
    return Attempt(plan, plan.task.start(plan.problem), opening)
