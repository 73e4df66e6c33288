"""Files that are whole or absent: written beside the target, synced, then renamed over it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; what the block writes there becomes ``path`` when the block ends without an error.

    A crash leaves the old ``path`` (or none), never half of the new one.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` (text as UTF-8) in one step."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_file(path) as part:
        part.write_bytes(data)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary directory that becomes ``path`` when the block ends without an error.

    An existing ``path`` is moved aside first and deleted last, so that its content survives a crash in between under
    the name ``.NAME.old``.
    """
    target = Path(path)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    old = target.with_name(f".{target.name}.old")
    try:
        yield part
        part.chmod(0o777 & ~_umask())
        for file in sorted(part.rglob("*")):
            _sync(file)
        _sync(part)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        os.rename(part, target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
