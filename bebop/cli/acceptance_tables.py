"""What `bebop eval-mtp` shows on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bebop.training.acceptance_report import TaskResult
from bebop.training.bootstrap import Difference, Figure


def acceptance_table(results: Sequence[TaskResult], rules: Sequence[str]) -> Table:
    """One row per task and rule."""
    grid = Table("task", "rule", "acceptance rate", "accept length", "expected", "acceptance given the depths before")
    for one in results:
        for rule in rules:
            grid.add_row(
                one.task,
                rule,
                spelled(one.figures[f"{rule}/acceptance_rate"], "{:.1%}"),
                spelled(one.figures[f"{rule}/accept_length"], "{:.2f}"),
                f"{one.figures[f'{rule}/estimated_round_length'].value:.2f}",
                by_depth(one, f"{rule}/conditional@", "{:.1%}"),
            )
    return grid


def laws_table(results: Sequence[TaskResult]) -> Table:
    """How target and draft differ, one row per task."""
    grid = Table(
        "task", "entropy", "draft entropy by depth", "overlap by depth", "rejection beats target-only, by depth"
    )
    for one in results:
        grid.add_row(
            one.task,
            spelled(one.figures["target_entropy"], "{:.3f}"),
            by_depth(one, "draft_entropy@", "{:.3f}"),
            by_depth(one, "overlap@", "{:.1%}"),
            by_depth(one, "prefers_rejection@", "{:.1%}"),
        )
    return grid


def heads_table(results: Sequence[TaskResult], rules: Sequence[str]) -> Table:
    """The accept lengths that other heads promise along the same rollouts; the difference is the evaluated head's
    less theirs, and above 0 where that is better."""
    grid = Table("task", "rule", "against", "its expected accept length", "difference to it")
    for one in results:
        for name, other in one.others.items():
            for rule in rules:
                figure = f"{rule}/estimated_round_length"
                difference = spelled(other.differences[figure], "{:+.3f}")
                grid.add_row(one.task, rule, name, f"{other.figures[figure].value:.2f}", difference)
    return grid


def calibration_table(results: Sequence[TaskResult]) -> Table:
    """One draft temperature per depth: found on every other episode, judged on the others, as the plain draft is."""
    grid = Table("task", "draft temperature by depth", "expected accept length, calibrated", "plain, same episodes")
    for one in results:
        temperatures = " ".join(f"{value:.2f}" for value in one.draft_temperatures or ())
        lengths = (one.figures[f"{name}/estimated_round_length"] for name in ("calibrated", "uncalibrated"))
        grid.add_row(one.task, temperatures, *(spelled(length, "{:.3f}") for length in lengths))
    return grid


def by_depth(result: TaskResult, prefix: str, form: str) -> str:
    return " ".join(form.format(one.value) for name, one in result.figures.items() if name.startswith(prefix))


def spelled(figure: Figure | Difference, form: str) -> str:
    return f"{form.format(figure.value)} ({form.format(figure.low)} to {form.format(figure.high)})"
