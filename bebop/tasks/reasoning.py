"""Any data set of the package ``reasoning-gym`` by name, with its own generator and its own score function."""

from __future__ import annotations

import inspect
import random
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from pydantic import Field

from bebop.config import ConfigModel
from bebop.errors import UserError
from bebop.tasks.answers import INSTRUCTION, extract_answer, is_harmless, is_same_number, require_math_verify
from bebop.tasks.base import Family, Message, Outcome, Problem, SingleTurn, Split, seeded, split_of

MAX_DRAWS = 2_000
"""Draws without a question of the wanted split, after which the data set counts as too small to be split."""
EVALUATES = re.compile(
    r"(?<![\w.])(?:eval|exec)\(|(?:sympy|sp)\.(?:parse_expr|sympify)\(|from sympy[\w.]* import .*parse_expr"
)
SCORER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, tokenize.TokenError),
)
"""What the scorers let through on a malformed answer."""


class ReasoningConfig(ConfigModel):
    """Which data set, and how its scores become rewards."""

    dataset: str = "chain_sum"
    """A name that reasoning-gym registers, such as ``chain_sum``, ``countdown`` or ``gcd``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of that data set's own config, such as ``max_terms``."""
    num_entries: int = Field(default=1_000_000_000, ge=1)
    """How many entries to draw from; some data sets accept fewer alone."""
    partial_credit: bool = False
    """Take the score itself as the reward; otherwise a full score is 1 and all else 0."""


class Dataset(Protocol):
    """What we use of a reasoning-gym data set."""

    def __getitem__(self, number: int) -> dict[str, Any]: ...

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float: ...


@dataclass(frozen=True, slots=True)
class ReasoningTask:
    """One turn, graded on what follows ``Answer:``."""

    config: ReasoningConfig
    dataset: Dataset
    evaluates: bool
    """Whether the data set's module evaluates text, perhaps answers."""
    seed: int = 0
    family: Family = "math"

    @property
    def name(self) -> str:
        return f"reasoning:{self.config.dataset}"

    def problem(self, split: Split, index: int) -> Problem:
        """UserError if the data set yields no question of this split."""
        rng = seeded(self.name, self.seed, index, split)
        for _ in range(MAX_DRAWS):
            entry = self._entry(rng)
            if split_of(entry["question"]) is split:
                opening = (Message(role="user", content=entry["question"] + INSTRUCTION),)
                return Problem(task=self.name, split=split, index=index, messages=opening, facts={"entry": entry})
        raise UserError(
            f"reasoning-gym's {self.config.dataset} gave no {split} question in {MAX_DRAWS} draws; "
            "ask for more kinds of questions with the task's options"
        )

    def start(self, problem: Problem) -> SingleTurn:
        return SingleTurn(lambda completion: self.grade(completion, problem))

    def grade(self, completion: str, problem: Problem) -> Outcome:
        """Reward 1 for a full score, or for the right number in another notation."""
        entry, answer = problem.facts["entry"], extract_answer(completion)
        if answer is None:
            return Outcome(reward=0.0, reason="no answer")
        if self.evaluates and not is_harmless(answer):
            return Outcome(reward=0.0, reason="unsafe answer")
        score = self._score(answer, entry)
        if score >= 1.0 or is_same_number(str(entry["answer"]), answer):
            return Outcome(reward=1.0, reason="solved")
        partial = max(0.0, score) if self.config.partial_credit else 0.0
        return Outcome(reward=partial, reason="partly right" if partial else "wrong answer")

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The reference answer without reasoning: the package has no worked solutions, so ``seed`` changes nothing."""
        answer = problem.facts["entry"]["answer"]
        if answer is None:
            raise UserError(f"reasoning-gym's {self.config.dataset} has no reference answers; choose another data set")
        return (*problem.messages, Message(role="assistant", content=f"Answer: {answer}"))

    def _entry(self, rng: random.Random) -> dict[str, Any]:
        return self.dataset[rng.randrange(self.config.num_entries)]

    def _score(self, answer: str, entry: Mapping[str, Any]) -> float:
        try:
            return float(self.dataset.score_answer(answer, dict(entry)))
        except SCORER_ERRORS:
            return 0.0


def load_reasoning(config: ReasoningConfig, seed: int) -> ReasoningTask:
    """UserError without the packages, for an unknown data set, or for options it does not take."""
    factory = _require()
    if config.dataset not in factory.DATASETS:
        raise UserError(
            f"reasoning-gym has no data set {config.dataset!r}; its names are in reasoning_gym.factory.DATASETS"
        )
    options = {"seed": seed, "size": config.num_entries, **config.options}
    try:
        dataset = factory.create_dataset(config.dataset, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning-gym's {config.dataset} refuses these options: {error}") from error
    return ReasoningTask(config=config, dataset=dataset, evaluates=evaluates_text(type(dataset)), seed=seed)


def evaluates_text(dataset_class: type) -> bool:
    """Whether the module that defines the data set calls ``eval`` or what amounts to it."""
    module = inspect.getmodule(dataset_class)
    return module is None or bool(EVALUATES.search(inspect.getsource(module)))


def _require() -> ModuleType:
    """reasoning-gym's factory; imported here because it takes seconds."""
    require_math_verify("reasoning")
    try:
        import reasoning_gym  # noqa: F401  (fills the factory)
        from reasoning_gym import factory
    except ImportError as error:
        raise UserError(
            f"the task reasoning needs the package {error.name}; run pip install 'bebop-rl[tasks]'"
        ) from error
    return factory
