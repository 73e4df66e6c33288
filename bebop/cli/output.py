"""Where a command writes a policy or a file of results: looked at before the work."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bebop.errors import UserError


def check_output(path: Path) -> None:
    """Before hours of work: whether the result can be written."""
    if path.exists() and not (path / "config.json").is_file():
        raise UserError(f"output {path} is there and no checkpoint; name another output=DIRECTORY or delete it")
    try:
        _try_to_write_beside(path)
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror}); name another output=DIRECTORY") from error


def checked_file(path: Path | None) -> Path | None:
    """The same path, before minutes of measuring: a file of results can be written there."""
    if path is None:
        return None
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file for the results")
    try:
        _try_to_write_beside(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file") from error
    return path


def _try_to_write_beside(path: Path) -> None:
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    # Without a name: the processes of one run look at once.
    tempfile.TemporaryFile(dir=path.absolute().parent).close()
