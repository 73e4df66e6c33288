"""The run directory of a command that can be interrupted: opened, locked, and explained when the disk is full."""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bebop.config import ConfigModel
from bebop.errors import UserError
from bebop.runs import LOCK, RunDirectory
from bebop.training.checkpoint import saved_steps

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def open_run(path: Path, settings: ConfigModel, seed: int, may_differ: Collection[str]) -> Iterator[RunDirectory]:
    """The run directory, held against other processes: a new one, or the one to go on with if its settings are these.

    ``may_differ``: settings, dotted, which a run that goes on takes from ``settings``.
    """
    command = ["bebop", *sys.argv[1:]]
    with locked(path):
        run = RunDirectory.create_or_resume(path, settings, command, seed=seed, may_differ=may_differ)
        with full_disk_explained(run):
            yield run


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a run against other processes; the lock goes with the process, however it ends."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; name another run=DIRECTORY")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is working on the run {directory}; wait for it or name another run"
            ) from error
        yield


@contextmanager
def full_disk_explained(run: RunDirectory) -> Iterator[None]:
    """Turn the error of a write that found no space into a ``UserError``; files are whole or absent all the same."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        steps = saved_steps(run.checkpoints_path)
        where = f"from {steps[-1].name}" if steps else "at the beginning, as there is no checkpoint yet"
        raise UserError(
            f"there is no space left for the run {run.path}, its output or (in /dev/shm) the weights on their way to "
            f"workers; free some and start the same command again, which goes on {where}"
        ) from error


def is_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # safetensors writes from Rust and gives the number in its text alone.
    return any(f"os error {number})" in str(error) for number in _FULL)
