"""Write a function for a described behaviour; graded by hidden tests in the sandbox.

A demonstration is *stepwise* (one assignment an operation) or *nested* (one expression, where precedence and
nesting are easy to get wrong). Expected values stay in the grading process; the sandbox sees the inputs alone.
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, model_validator

from bebop.config import ConfigModel
from bebop.tasks.base import Family, Message, Outcome, Problem, SingleTurn, Split, check_range, draw_in_split, seeded
from bebop.tasks.code_operations import INPUTS, Step, draw_pipeline
from bebop.tasks.sandbox import SandboxConfig, grade_function

FENCED = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)
FUNCTION_NAMES = ("f", "go", "run", "solve")


class CodeConfig(ConfigModel):
    """Size of the generated problems, and how they are graded."""

    min_steps: int = Field(default=2, ge=2)
    max_steps: int = Field(default=5, ge=2)
    num_cases: int = Field(default=6, ge=1)
    """Hidden tests of a problem."""
    sandbox: SandboxConfig = SandboxConfig()

    @model_validator(mode="after")
    def _check(self) -> CodeConfig:
        check_range("steps", self.min_steps, self.max_steps)
        return self


@dataclass(frozen=True, slots=True)
class Specification:
    function_name: str
    steps: tuple[Step, ...]

    @property
    def variable(self) -> str:
        return self.steps[0].operation.takes

    @property
    def question(self) -> str:
        told = [step.told for step in self.steps]
        behaviour = ", ".join(told[:-1]) + f", then {told[-1]}"
        return f"Write {self.function_name}({self.variable}) that {behaviour}."

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


def draw_specification(config: CodeConfig, rng: random.Random) -> Specification:
    steps = draw_pipeline(rng.randint(config.min_steps, config.max_steps), rng)
    return Specification(rng.choice(FUNCTION_NAMES), steps)


def stepwise(specification: Specification, rng: random.Random) -> str:
    """One assignment an operation, sometimes with comments."""
    with_comments, name = rng.random() < 0.5, specification.variable
    lines = [f"def {specification.function_name}({name}):"]
    for step in specification.steps:
        if with_comments:
            lines.append(f"    # {rng.choice(COMMENTS)}{step.told}")
        result = rng.choice((name, *RESULT_NAMES))
        lines.append(f"    {result} = {plain(step.expression(name))}")
        name = result
    return "\n".join([*lines, f"    return {name}"])


def nested(specification: Specification, rng: random.Random) -> str:
    """One expression."""
    expression = specification.variable
    for step in specification.steps:
        expression = step.expression(f"({expression})")
    return f"def {specification.function_name}({specification.variable}):\n    return {plain(expression)}"


def plain(expression: str) -> str:
    """The expression without needless parentheses."""
    return ast.unparse(ast.parse(expression, mode="eval"))


def opening_sentence(rng: random.Random) -> str:
    return "".join(rng.choice(words) for words in OPENERS) if rng.random() < 0.8 else ""


MANNERS = (stepwise, nested)
RESULT_NAMES = ("y", "out", "value", "result")
COMMENTS = ("it ", "now it ", "this ", "")
OPENERS = (
    ("Here is ", "This is ", "I write ", "Below is "),
    ("the function", "the code", "a solution", "my version"),
    (".\n", ":\n", " step by step.\n"),
)


@dataclass(frozen=True, slots=True)
class CodeTask:
    """Pipelines of small operations on a number, a list or a string; reward 1 if every hidden test passes."""

    config: CodeConfig = field(default_factory=CodeConfig)
    seed: int = 0
    name: str = "code"
    family: Family = "code"

    def problem(self, split: Split, index: int) -> Problem:
        words = (self.name, self.seed, index)
        drawn = draw_in_split(split, words, lambda rng: draw_specification(self.config, rng), lambda one: one.question)
        rng = seeded(*words, "cases")
        inputs = [INPUTS[drawn.variable](rng) for _ in range(self.config.num_cases)]
        facts = {"specification": drawn, "inputs": inputs, "expected": [drawn(value) for value in inputs]}
        opening = (Message(role="user", content=drawn.question),)
        return Problem(task=self.name, split=split, index=index, messages=opening, facts=facts)

    def start(self, problem: Problem) -> SingleTurn:
        return SingleTurn(lambda completion: self.grade(completion, problem))

    def grade(self, completion: str, problem: Problem) -> Outcome:
        """Reward 1 if the function returns the expected value on every hidden input."""
        source = extract_code(completion)
        function_name = problem.facts["specification"].function_name
        if f"def {function_name}(" not in source:
            return Outcome(reward=0.0, reason="no function")
        cases = list(zip(([value] for value in problem.facts["inputs"]), problem.facts["expected"], strict=True))
        result = grade_function(source, function_name, cases, config=self.config.sandbox)
        return Outcome(reward=float(result.passed), reason="solved" if result.passed else result.reason)

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        rng, specification = seeded(problem.id, seed), problem.facts["specification"]
        text = f"{opening_sentence(rng)}```python\n{rng.choice(MANNERS)(specification, rng)}\n```"
        return (*problem.messages, Message(role="assistant", content=text))


def extract_code(completion: str) -> str:
    """The last fenced block, or the whole text where there is none."""
    blocks = FENCED.findall(completion)
    return blocks[-1] if blocks else completion
