"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bebop.errors import UserError
from bebop.tasks.agent import AgentTask
from bebop.tasks.agent_worlds import AgentConfig
from bebop.tasks.base import Task
from bebop.tasks.code import CodeConfig, CodeTask
from bebop.tasks.humaneval import HumanEvalConfig, HumanEvalTask
from bebop.tasks.math import MathConfig, MathTask
from bebop.tasks.reasoning import ReasoningConfig, load_reasoning

TASKS: dict[str, Callable[[int, Mapping[str, Any]], Task]] = {
    "math": lambda seed, options: MathTask(MathConfig.model_validate(options), seed),
    "code": lambda seed, options: CodeTask(CodeConfig.model_validate(options), seed),
    "agent": lambda seed, options: AgentTask(AgentConfig.model_validate(options), seed),
    "humaneval": lambda seed, options: HumanEvalTask(HumanEvalConfig.model_validate(options)),
    "reasoning": lambda seed, options: load_reasoning(ReasoningConfig.model_validate(options), seed),
}


def load_task(name: str, seed: int = 0, options: Mapping[str, Any] | None = None) -> Task:
    """The task of that name; ``options`` are the fields of its config. UserError for an unknown name."""
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; choose one of {', '.join(sorted(TASKS))}")
    return TASKS[name](seed, options or {})
