"""Tasks by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from bebop.config import ConfigModel
from bebop.config_errors import KeyOrigins, explain
from bebop.errors import UserError
from bebop.tasks.agent import AgentTask
from bebop.tasks.agent_worlds import AgentConfig
from bebop.tasks.base import Task
from bebop.tasks.code import CodeConfig, CodeTask
from bebop.tasks.humaneval import HumanEvalConfig, HumanEvalTask
from bebop.tasks.math import MathConfig, MathTask
from bebop.tasks.own import load_own
from bebop.tasks.questions import QuestionsConfig, load_questions
from bebop.tasks.reasoning import ReasoningConfig, load_reasoning

Options = Mapping[str, Any]
Config = TypeVar("Config", bound=ConfigModel)

TASKS: dict[str, Callable[[int, Options], Task]] = {
    "math": lambda seed, options: MathTask(configured(MathConfig, "math", options), seed),
    "code": lambda seed, options: CodeTask(configured(CodeConfig, "code", options), seed),
    "agent": lambda seed, options: AgentTask(configured(AgentConfig, "agent", options), seed),
    "humaneval": lambda _, options: HumanEvalTask(configured(HumanEvalConfig, "humaneval", options)),
    "reasoning": lambda seed, options: load_reasoning(configured(ReasoningConfig, "reasoning", options), seed),
    "questions": lambda seed, options: load_questions(configured(QuestionsConfig, "questions", options), seed),
}
DETAIL = {"reasoning": "dataset", "questions": "file"}
"""Tasks whose name may go on with an option's value, as in ``questions:gsm8k.jsonl``; and that option."""


class TaskChoice(ConfigModel):
    """A task and its options."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)


class TaskShare(TaskChoice):
    """A task, its options, and how much of the run it is."""

    share: int = Field(default=1, ge=1)
    """Problems of this task in a round of turns: with shares of 1, 2 and 3, half are of the third task."""


def load_tasks(choices: Sequence[TaskChoice], seed: int) -> dict[str, Task]:
    """The chosen tasks by the names they are chosen by; the seed decides their problems.

    UserError where two call themselves the same: their rewards and problems could not be told apart.
    """
    tasks = [(one.name, load_task(one.name, seed, one.options)) for one in choices]
    for name, number in Counter(task.name for _, task in tasks).items():
        if number > 1:
            raise UserError(
                f"{number} of the tasks are called {name}; name each once, and give files names of their own"
            )
    return dict(tasks)


def load_task(name: str, seed: int = 0, options: Options | None = None) -> Task:
    """The task of that name; ``options`` are the fields of its config. UserError for an unknown name or option.

    A name is one of ``TASKS``, one of ``DETAIL`` with a colon and a value, or a task of one's own, ``MODULE:FACTORY``.
    """
    kind, colon, detail = name.partition(":")
    if kind in DETAIL and detail:
        return TASKS[kind](seed, {DETAIL[kind]: detail, **(options or {})})
    if colon and kind not in TASKS and not get_close_matches(kind, DETAIL, n=1, cutoff=0.8):
        return load_own(name, seed, options or {})
    if name not in TASKS:
        near = get_close_matches(kind, TASKS, n=1)
        meant = f"did you mean {near[0]}? There are" if near else "choose one of"
        raise UserError(
            f"there is no task {name!r}; {meant} {', '.join(sorted(TASKS))}, or name your own, FILE.py:CLASS"
        )
    return TASKS[name](seed, options or {})


def configured(model: type[Config], task: str, options: Options) -> Config:
    """UserError that names the option and what is nearest right."""
    try:
        return model.model_validate(options)
    except ValidationError as error:
        origins = KeyOrigins(file=f"options of the task {task}", lines={}, overrides={})
        raise UserError(explain(error, model, origins)) from error
