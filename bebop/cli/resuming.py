"""Where a command that can be interrupted keeps its run."""

from __future__ import annotations

import sys
from pathlib import Path

from bebop.config import ConfigModel
from bebop.errors import UserError
from bebop.runs import RunDirectory


def open_run(path: Path, settings: ConfigModel, seed: int) -> RunDirectory:
    """The run directory: a new one, or the one to resume if it holds the same settings."""
    if not path.exists():
        return RunDirectory.create(path, settings, sys.argv, seed=seed)
    run = RunDirectory.open(path)
    if run.config(type(settings)) != settings:
        raise UserError(f"{path} holds a run with other settings; name another run=DIRECTORY or delete it")
    run.record_resumption(sys.argv, seed=seed)
    return run
