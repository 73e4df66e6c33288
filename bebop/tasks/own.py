"""Tasks of your own: a class named by its module or file, such as ``my_tasks.py:Puzzles``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bebop.errors import UserError
from bebop.tasks.base import Task

PARTS = ("name", "family", "problem", "start", "demonstration")


def load_own(name: str, seed: int, options: Mapping[str, Any]) -> Task:
    """What ``MODULE:FACTORY(seed, options)`` makes; a module is a name to import, or a file that ends in ``.py``.

    UserError where there is no such thing, or it makes no task. What the code itself raises is let through.
    """
    place, _, factory = name.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _imported(place)
    if not callable(getattr(module, factory, None)):
        raise UserError(f"{place} has no {factory} that makes a task; define it there as a function or class")
    task = getattr(module, factory)(seed, options)
    missing = [one for one in PARTS if not hasattr(task, one)]
    if missing:
        raise UserError(f"what {name} makes is no task, as it has no {missing[0]}; see docs/guides/tasks.md")
    return task


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path}; name the file of the task, from the directory you are in")
    # The whole path, as files of one name may stand in two directories; what stands beside the file can be imported.
    name = f"bebop_own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"there is no module {error.name}; install it, or name the task's file, such as my_tasks.py:Puzzles"
        ) from error
