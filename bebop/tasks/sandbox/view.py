"""Which directories of this machine the sandbox shows, read-only: the interpreter's library and the shared libraries.

Installed packages are hidden: they may hold the answers (data sets with solutions), and solutions need none.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
PACKAGE_DIRECTORIES = ("site-packages", "dist-packages")


@functools.cache
def python_view() -> dict[str, list]:
    """The ``view`` of ``jail.namespaces.enter``, as absolute paths without symbolic links."""
    standard_library = Path(os.__file__).resolve().parent
    wanted = [standard_library.parent, *(Path(path) for path in SYSTEM_LIBRARIES if os.path.isdir(path))]
    readable = _outermost({path.resolve() for path in wanted})
    hidden = {packages for path in readable for packages in _package_directories(path)}
    return {
        "readable": [str(path) for path in readable],
        "hidden": sorted(str(path) for path in hidden),
        "links": [[path, str(Path(path).resolve())] for path in SYSTEM_LIBRARIES if os.path.islink(path)],
    }


def _outermost(paths: set[Path]) -> list[Path]:
    return sorted(path for path in paths if not any(parent in paths for parent in path.parents))


def _package_directories(library: Path) -> list[Path]:
    found = [path for name in PACKAGE_DIRECTORIES for path in library.glob(f"python*/{name}")]
    return [path.resolve() for path in found if path.is_dir() and path.resolve().is_relative_to(library)]
