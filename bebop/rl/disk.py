"""What to say when the disk is full: where, and that nothing is lost but the steps since the last checkpoint."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from bebop.errors import UserError
from bebop.runs import RunDirectory
from bebop.training.checkpoint import saved_steps

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
            f"there is no space left for the run {run.path} (or in /dev/shm, for weights on their way to workers); "
            f"free some and start the same command again, which goes on {where}"
        ) from error


def is_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # safetensors writes from Rust and gives the number in its text alone.
    return any(f"os error {number})" in str(error) for number in _FULL)
