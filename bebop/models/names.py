"""Built-in policy names, and the directories they stand for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from bebop.errors import UserError


def cache_dir() -> Path:
    """Home of converted and trained policies: `$BEBOP_CACHE`, `$XDG_CACHE_HOME/bebop` or `~/.cache/bebop`."""
    if os.environ.get("BEBOP_CACHE"):
        return Path(os.environ["BEBOP_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bebop"


def _tiny() -> Path:
    from bebop.models.tiny import tiny_path

    return tiny_path()


def _tiny_hybrid() -> Path:
    from bebop.models.tiny import tiny_hybrid_path

    return tiny_hybrid_path()


def _smollm2() -> Path:
    from bebop.models.smollm2 import smollm2_path

    return smollm2_path()


def _smollm2_sft() -> Path:
    path = output_path("smollm2-sft")
    if not is_checkpoint(path):
        raise UserError(
            f"smollm2-sft is not in {path.parent} yet; make it with `bebop train-sft configs/train-sft-smollm2.yaml`."
        )
    return path


BUILT_IN: Mapping[str, Callable[[], Path]] = {
    "tiny": _tiny,
    "tiny-hybrid": _tiny_hybrid,
    "smollm2": _smollm2,
    "smollm2-sft": _smollm2_sft,
}


def resolve_name(name_or_path: str | Path) -> Path:
    """The checkpoint directory of a built-in name or of a path; a name wins over a directory of the same name."""
    if isinstance(name_or_path, str) and name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]()
    path = Path(name_or_path).expanduser()
    if not path.exists():
        names = ", ".join(BUILT_IN)
        raise UserError(f"There is no policy {str(name_or_path)!r}; name a checkpoint directory or one of {names}.")
    return path


def is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file()


def output_path(name_or_path: str | Path) -> Path:
    """Where to write a policy of that name or path: `smollm2-sft` goes to the cache, where `load_policy` looks."""
    return cache_dir() / "smollm2-sft" if str(name_or_path) == "smollm2-sft" else Path(name_or_path)
