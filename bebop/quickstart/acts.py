"""What a quickstart consists of: acts, each a few ``bebop`` commands and a way to say what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Found = Callable[[Path], list[str]]
"""The quickstart's directory -> short lines of what an act found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command. Its standard output goes to ``out/NAME``, its messages to ``logs/NAME.log``."""

    name: str
    arguments: tuple[str, ...]
    """What follows ``bebop``; paths are relative to the directory that the quickstart was started in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """Commands with one purpose. ``waves`` follow one another; the steps of a wave run side by side, a core each."""

    title: str
    purpose: str
    waves: tuple[tuple[Step, ...], ...]
    found: Found

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for wave in self.waves for step in wave)


def side_by_side(*steps: Step) -> tuple[tuple[Step, ...], ...]:
    return (steps,)


def one_by_one(*steps: Step) -> tuple[tuple[Step, ...], ...]:
    return tuple((step,) for step in steps)


def output_of(directory: Path, step: str) -> Path:
    """What a step printed."""
    return directory / "out" / step


def log_of(directory: Path, step: str) -> Path:
    """What a step said while it ran."""
    return directory / "logs" / f"{step}.log"


def check_names(acts: Sequence[Act]) -> None:
    """Steps are told apart by name: in files, in marks of what is done."""
    names = [step.name for act in acts for step in act.steps]
    assert len(names) == len(set(names)), "two steps have the same name"
