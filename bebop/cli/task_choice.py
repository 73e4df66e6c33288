"""How commands are told which tasks to play."""

from __future__ import annotations

from typing import Annotated

import typer

from bebop.config import ConfigModel, load_config
from bebop.tasks.base import Task
from bebop.tasks.registry import TaskChoice, load_tasks

TasksOption = Annotated[
    str, typer.Option(help="Names of tasks, with commas; or, with options, a list as in a configuration's tasks.")
]


class TasksConfig(ConfigModel):
    """What ``--tasks`` stands for."""

    tasks: tuple[TaskChoice, ...]


def chosen_tasks(text: str, seed: int) -> list[Task]:
    """The tasks of ``math,agent`` or of ``[{name: math, options: {...}}]``; UserError for what is none."""
    if text.lstrip().startswith("["):
        choices = load_config(TasksConfig, None, [f"tasks={text}"]).tasks
    else:
        choices = tuple(TaskChoice(name=name) for name in text.split(","))
    return list(load_tasks(choices, seed).values())
