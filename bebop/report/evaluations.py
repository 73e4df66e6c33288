"""What `bebop eval-mtp --json` wrote: acceptance per task and rule, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bebop.errors import UserError
from bebop.report.analysis import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One policy and head, on some tasks."""

    name: str
    """The file's name without its ending."""
    policy: str
    about: Mapping[str, Any]
    """Settings of the evaluation: temperature, k, split, seed."""
    figures: Mapping[str, Mapping[str, Estimate]]
    """Task -> name of figure (see ``bebop.training.mtp_eval``) -> its value."""
    counts: Mapping[str, Mapping[str, float]]
    """The same, as the number of items behind each figure."""

    @property
    def rules(self) -> list[str]:
        """Verification rules that were played; rejection, which is the default, first."""
        names = (name for task in self.figures.values() for name in task if name.endswith("/accept_length"))
        return sorted(dict.fromkeys(name.partition("/")[0] for name in names), key=lambda rule: rule != "rejection")

    def get(self, task: str, figure: str) -> Estimate | None:
        return self.figures.get(task, {}).get(figure)

    def pooled(self, figure: str) -> float | None:
        """Over the tasks that have it, weighted by what it counts."""
        pairs = [(self.figures[task][figure].value, self.counts[task][figure]) for task in self.figures_with(figure)]
        weight = sum(count for _, count in pairs)
        return sum(value * count for value, count in pairs) / weight if weight else None

    def figures_with(self, figure: str) -> list[str]:
        """Tasks that have the figure."""
        return [task for task, figures in self.figures.items() if figure in figures]


def read_evaluation(path: Path) -> Evaluation:
    """UserError for a file that is not the output of `bebop eval-mtp --json`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        tasks = {task["task"]: task["figures"] for task in record["tasks"]}
        return Evaluation(
            name=path.stem,
            policy=str(record["policy"]),
            about={key: record[key] for key in ("temperature", "k", "split", "seed") if key in record},
            figures={task: {name: estimate(one) for name, one in figures.items()} for task, figures in tasks.items()},
            counts={
                task: {name: float(one["count"]) for name, one in figures.items()} for task, figures in tasks.items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the output of `bebop eval-mtp --json`; give that, or a run directory"
        ) from error


def estimate(figure: Mapping[str, Any]) -> Estimate:
    low, high = float(figure["low"]), float(figure["high"])
    if low > high:
        raise ValueError(f"interval [{low}, {high}] is upside down")
    return Estimate(value=float(figure["value"]), low=low, high=high)
