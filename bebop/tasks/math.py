"""Generated word problems of two to four steps, with worked reasoning and a graded final answer.

A demonstration is written in one of three manners: *worked* (one sentence a step), *equations* (one equation a step) or
*direct* (the result alone, hard for a small policy). A policy tuned on them has real choices of wording and of manner,
and reinforcement learning has something to find: the manner it can compute in.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from pydantic import Field, model_validator

from bebop.config import ConfigModel
from bebop.tasks.base import Family, Message, Outcome, Problem, SingleTurn, Split, check_range, draw_in_split, seeded

NAMES = ("Mia", "Tom", "Ana", "Ben", "Lea", "Max", "Zoe", "Sam")
THINGS = ("pens", "nuts", "eggs", "cards", "coins", "books", "stamps", "shells")
ANSWER = re.compile(r"Answer:\s*(-?\d+)")


class MathConfig(ConfigModel):
    """Ranges of the generated problems."""

    min_steps: int = Field(default=2, ge=1)
    max_steps: int = Field(default=3, ge=1)
    max_start: int = Field(default=20, ge=2)
    """Largest number a problem starts from."""
    max_change: int = Field(default=9, ge=1)
    """Largest number added or taken away in a step."""
    max_value: int = Field(default=60, ge=2)
    """No intermediate result passes this."""

    @model_validator(mode="after")
    def _check(self) -> MathConfig:
        check_range("steps", self.min_steps, self.max_steps)
        if self.max_value < self.max_start:
            raise ValueError(f"max_value {self.max_value} is below max_start {self.max_start}; raise it")
        return self


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the count: ``verb`` is gain, lose, double or triple."""

    verb: str
    amount: int
    before: int
    after: int

    @property
    def equation(self) -> str:
        return f"{self.before} {SYMBOLS[self.verb]} {self.amount} = {self.after}"


SYMBOLS = {"gain": "+", "lose": "-", "double": "*", "triple": "*"}
STORY = {
    "gain": ("gets {n} more", "finds {n}", "buys {n}", "is given {n}"),
    "lose": ("loses {n}", "gives away {n}", "sells {n}", "breaks {n}"),
    "double": ("doubles them",),
    "triple": ("triples them",),
}
CONNECTIVES = ("Then", "Next", "After that", "Now")
OPENERS = ("{name} starts with {n}.", "At first there are {n}.", "We begin with {n}.", "First, {n} {thing}.")
REASONS = {
    "gain": ("{name} adds {n}", "{n} more", "plus {n}", "the count grows by {n}"),
    "lose": ("{name} loses {n}", "{n} fewer", "minus {n}", "the count drops by {n}"),
    "double": ("twice as many", "the count doubles"),
    "triple": ("three times as many", "the count triples"),
}
CLOSERS = ("So", "In the end", "That leaves", "The result is")


@dataclass(frozen=True, slots=True)
class Story:
    name: str
    thing: str
    start: int
    steps: tuple[Step, ...]
    phrases: tuple[str, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].after

    @property
    def question(self) -> str:
        told = [f"{self.name} has {self.start} {self.thing}."]
        told += [f"{self.name} {phrase}." for phrase in self.phrases]
        return " ".join([*told, f"How many {self.thing} now?"])


def draw_story(config: MathConfig, rng: random.Random) -> Story:
    start = rng.randint(2, config.max_start)
    steps, phrases, value = [], [], start
    for _ in range(rng.randint(config.min_steps, config.max_steps)):
        step = draw_step(config, value, rng)
        steps.append(step)
        phrases.append(rng.choice(STORY[step.verb]).format(n=step.amount))
        value = step.after
    return Story(rng.choice(NAMES), rng.choice(THINGS), start, tuple(steps), tuple(phrases))


def draw_step(config: MathConfig, value: int, rng: random.Random) -> Step:
    """A change that keeps the count between 0 and ``max_value``."""
    possible = {
        "gain": value + 1 <= config.max_value,
        "lose": value >= 1,
        "double": 1 <= value <= config.max_value // 4,
        "triple": 1 <= value <= config.max_value // 6,
    }
    verbs = ["gain", "gain", "lose", "lose", "double", "triple"]
    verb = rng.choice([verb for verb in verbs if possible[verb]])
    if verb == "gain":
        amount = rng.randint(1, min(config.max_change, config.max_value - value))
        return Step(verb, amount, value, value + amount)
    if verb == "lose":
        amount = rng.randint(1, min(config.max_change, value))
        return Step(verb, amount, value, value - amount)
    factor = 2 if verb == "double" else 3
    return Step(verb, factor, value, value * factor)


def worked(story: Story, rng: random.Random) -> str:
    """One sentence a step."""
    lines = [rng.choice(OPENERS).format(name=story.name, n=story.start, thing=story.thing)]
    for step in story.steps:
        reason = rng.choice(REASONS[step.verb]).format(name=story.name, n=step.amount)
        lines.append(f"{rng.choice(CONNECTIVES)} {reason}: {step.equation}.")
    return "\n".join([*lines, f"{rng.choice(CLOSERS)} {story.answer} {story.thing}."])


def equations(story: Story, rng: random.Random) -> str:
    """One equation a step."""
    return "\n".join(step.equation for step in story.steps)


def direct(story: Story, rng: random.Random) -> str:
    """Everything at once."""
    return f"{rng.choice(CLOSERS)} {story.answer} {story.thing}."


MANNERS = (worked, worked, equations, direct, direct)
"""Of the worked answers, each as often as it stands here. What is answered at once is mostly wrong: a tuned policy has
that to unlearn."""


@dataclass(frozen=True, slots=True)
class MathTask:
    """Word problems about one changing count; reward 1 for the right number after ``Answer:``."""

    config: MathConfig = field(default_factory=MathConfig)
    seed: int = 0
    name: str = "math"
    family: Family = "math"

    def problem(self, split: Split, index: int) -> Problem:
        words = (self.name, self.seed, index)
        story = draw_in_split(split, words, lambda rng: draw_story(self.config, rng), lambda story: story.question)
        opening = (Message(role="user", content=story.question),)
        facts = {"story": story, "answer": story.answer}
        return Problem(task=self.name, split=split, index=index, messages=opening, facts=facts)

    def start(self, problem: Problem) -> SingleTurn:
        return SingleTurn(lambda completion: grade(completion, problem.facts["answer"]))

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        rng, story = seeded(problem.id, seed), problem.facts["story"]
        text = f"{rng.choice(MANNERS)(story, rng)}\nAnswer: {story.answer}"
        return (*problem.messages, Message(role="assistant", content=text))


def grade(completion: str, answer: int) -> Outcome:
    """Reward 1 if the last ``Answer: n`` is the right number."""
    found = ANSWER.findall(completion)
    if not found:
        return Outcome(reward=0.0, reason="no answer")
    solved = int(found[-1]) == answer
    return Outcome(reward=float(solved), reason="solved" if solved else "wrong answer")
