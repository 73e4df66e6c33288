"""Where a command writes a policy."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bebop.errors import UserError


def check_output(path: Path) -> None:
    """Before hours of work: whether the result can be written."""
    if path.exists() and not (path / "config.json").is_file():
        raise UserError(f"output {path} is there and no checkpoint; name another output=DIRECTORY or delete it")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        # Without a name: the processes of one run look at once.
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror}); name another output=DIRECTORY") from error
