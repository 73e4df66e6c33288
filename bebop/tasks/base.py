"""What a task is: problems, episodes of one or more turns, and a reward with a named reason.

Everything here is deterministic: a problem is a function of (task seed, split, index), a demonstration of (problem,
seed), and an episode of the completions it is given. The two splits cannot overlap, because the split of a problem is
decided by a hash of what the problem asks (``split_of``), never by its index.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeVar, get_args

Drawn = TypeVar("Drawn")
Role = Literal["system", "user", "assistant", "tool"]
Family = Literal["math", "code", "agent"]

HELDOUT_SHARE = 10
"""One problem in this many is held out."""


class Split(StrEnum):
    """Which problems: those a policy may be trained on, or those that only measure it."""

    TRAIN = "train"
    HELDOUT = "heldout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a chat."""

    role: Role
    content: str
    is_learned: bool = True
    """False: an assistant's turn that is shown and not learned from, such as a slip that the next turns mend."""


def as_message(row: Mapping[str, Any]) -> Message:
    """A message of a file's chat; KeyError, TypeError or ValueError where it is none.

    ``weight`` 0 or 1 is the field of that name in OpenAI's fine-tuning format: whether the turn is learned from.
    """
    role, content, weight = row["role"], row["content"], row.get("weight", 1)
    if role not in get_args(Role) or not isinstance(content, str) or weight not in (0, 1):
        raise ValueError(
            f"{role!r} is none of {', '.join(get_args(Role))}, its content no text or its weight not 0 or 1"
        )
    return Message(role=role, content=content, is_learned=bool(weight))


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is asked, and what grading needs to know."""

    task: str
    split: Split
    index: int
    messages: tuple[Message, ...]
    """The opening of the chat, up to the policy's first turn."""
    facts: Mapping[str, Any]
    """Whatever the task's grader and its demonstrations need. Never shown to the policy, never sent to another process:
    there a problem is drawn again from (task, split, index)."""

    @property
    def id(self) -> str:
        """A name that is unique within a run, such as ``math/train/17``."""
        return f"{self.task}/{self.split}/{self.index}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an episode ended."""

    reward: float
    """In [0, 1]."""
    reason: str
    """A short named cause: ``solved``, ``wrong answer``, ``no answer``, ``turn limit``, ``timeout`` ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The environment's answer to one turn of the policy: more messages, or the end."""

    messages: tuple[Message, ...] = ()
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        assert (self.outcome is None) == bool(self.messages), (
            "a turn either goes on with messages or ends with an outcome"
        )


class Episode(Protocol):
    """One attempt at a problem."""

    def step(self, completion: str) -> Turn:
        """Take the policy's next turn (text without the end-of-turn token) and answer it."""
        ...


class Task(Protocol):
    """A source of problems with verifiable rewards."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family: ...

    def problem(self, split: Split, index: int) -> Problem:
        """Problem number ``index`` of a split, the same one every time."""
        ...

    def start(self, problem: Problem) -> Episode: ...

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """A worked transcript of ``problem``, its opening messages included; wording varies with ``seed``."""
        ...


@dataclass(frozen=True, slots=True)
class SingleTurn:
    """The episode of a task that is answered in one turn."""

    grade: Callable[[str], Outcome]

    def step(self, completion: str) -> Turn:
        return Turn(outcome=self.grade(completion))


def split_of(question: str) -> Split:
    """The split that a question belongs to, whatever its index, seed or task version."""
    digest = hashlib.sha256(question.encode()).digest()
    return Split.HELDOUT if int.from_bytes(digest[:8], "big") % HELDOUT_SHARE == 0 else Split.TRAIN


def draw_in_split(
    split: Split,
    seed_words: tuple[str | int, ...],
    draw: Callable[[random.Random], Drawn],
    question: Callable[[Drawn], str],
) -> Drawn:
    """Draw until the question falls into ``split``; deterministic in ``seed_words``."""
    rng = seeded(*seed_words, split)
    while True:
        drawn = draw(rng)
        if split_of(question(drawn)) is split:
            return drawn


def seeded(*words: str | int) -> random.Random:
    """A generator that depends on its words alone, on every machine and Python version."""
    return random.Random(":".join(str(word) for word in words))


def check_range(what: str, least: int, most: int) -> None:
    """ValueError where a config's ``min_WHAT`` is above its ``max_WHAT``."""
    if least > most:
        raise ValueError(f"min_{what} {least} is above max_{what} {most}; change one of them")
