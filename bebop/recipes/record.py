"""What a recipe is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["shell", "overrides", "yaml", "toml", "python"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Something to copy: ``text`` as the framework reads it, ``data`` the same for programs."""

    title: str
    form: Form
    data: Any
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A figure of the framework's in our words. ``ours`` is a name of `bebop.engines.vllm.counters.acceptance_metrics`,
    or None where we have no such figure; ``note`` says where the definitions differ."""

    theirs: str
    ours: str | None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caveat:
    """What is known to go wrong, and where that is written."""

    text: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a framework rolls out with a trained head, frozen and verified by rejection sampling.

    ``refusal`` is set, and ``blocks`` empty, where the framework cannot.
    """

    framework: str
    checked: str
    """The version or date of the source that the options were checked against."""
    head: Mapping[str, Any]
    blocks: tuple[Block, ...]
    metrics: tuple[Metric, ...]
    caveats: tuple[Caveat, ...]
    refusal: str | None = None
