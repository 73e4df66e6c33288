"""Where a command that can be interrupted keeps its run."""

from __future__ import annotations

import sys
from pathlib import Path

from bebop.config import ConfigModel
from bebop.runs import RunDirectory


def open_run(path: Path, settings: ConfigModel, seed: int) -> RunDirectory:
    """The run directory: a new one, or the one to resume if it holds the same settings.

    ``steps`` alone may differ: a run that has ended goes on to a later end, at learning rates as scheduled for it.
    """
    command = ["bebop", *sys.argv[1:]]
    return RunDirectory.create_or_resume(path, settings, command, seed=seed, may_differ=("steps",))
