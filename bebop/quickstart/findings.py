"""What the acts found, in a few lines each, read from what their commands wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from bebop.metrics import Mean
from bebop.quickstart.acts import output_of
from bebop.report.analysis_time import speed_up, step_time, token_speed_up
from bebop.report.reading import read_run
from bebop.report.runlog import RunLog
from bebop.runs import RunDirectory

ACCEPTANCE = "acceptance-"
RUN = "rl-"
BASELINE = "rl-plain"


def printed(directory: Path, step: str) -> Any:
    """What a command printed as JSON."""
    return json.loads(output_of(directory, step).read_text(encoding="utf-8"))


def policy(directory: Path) -> list[str]:
    return [
        f"{one['task']}: reward {ratio(one['reward']):.2f}, entropy {ratio(one['entropy']):.2f} nats per token, "
        f"{ratio(one['turns']):.1f} turns"
        for one in printed(directory, "policy")
    ]


def heads(directory: Path) -> list[str]:
    lines = []
    for path in sorted(directory.glob("head-*")):
        last = RunDirectory.open(path).metrics()[-1].values
        overlaps = [value.value for name, value in last.items() if name.startswith("mtp/overlap@") and is_mean(value)]
        shown = ", ".join(f"{one:.1%}" for one in overlaps[:3])
        lines.append(f"{path.name.removeprefix('head-')}: overlap of draft and policy at depths 1 to 3: {shown}")
    return lines


def acceptance(directory: Path) -> list[str]:
    lines = []
    for objective, by_rule in accept_lengths(directory).items():
        lengths = ", ".join(f"{rule} {length:.2f}" for rule, length in by_rule.items())
        lines.append(f"{objective} head: tokens per round over all tasks: {lengths}")
    return lines


def accept_lengths(directory: Path) -> dict[str, dict[str, float]]:
    """Objective -> rule -> accept length over all rounds of all tasks."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((directory / "out").glob(f"{ACCEPTANCE}*")):
        tasks = printed(directory, path.name)["tasks"]
        names = [name for name in tasks[0]["figures"] if name.endswith("/accept_length")]
        found[path.name.removeprefix(ACCEPTANCE)] = {
            name.removesuffix("/accept_length"): ratio_of_sums(task["figures"][name] for task in tasks)
            for name in names
        }
    return found


def learning(directory: Path) -> list[str]:
    paths = sorted(directory.glob(f"{RUN}*"), key=lambda path: (path.name != BASELINE, path.name))
    runs = [read_run(path, []) for path in paths]
    return [line for run in runs for line in (told(run, runs[0]), f"  held-out reward {heldout(run)}")]


def told(run: RunLog, baseline: RunLog) -> str:
    """What a step of the run took, and how much faster that is."""
    time, length = step_time(run), run.series("mtp/accept_length")
    line = f"{run.name.removeprefix(RUN)}: {run.rows[-1].step if run.rows else 0} updates"
    line += f", {time.step.value:.2f} s a step" if time else ""
    ratio, per_token = speed_up(baseline, run), token_speed_up(baseline, run)
    if run is not baseline and ratio:
        # Updates that replace more groups, or whose answers are longer, are more work.
        line += f", {ratio.value:.2f} times as fast" + (f" ({per_token.value:.2f} per token)" if per_token else "")
    return line + (f", accept length {length.pooled:.2f}" if length else "")


def report(directory: Path) -> list[str]:
    summary = output_of(directory, "report").read_text(encoding="utf-8").splitlines()
    return [*summary, f"open {directory / 'report.html'} in a browser"]


def heldout(run: RunLog) -> str:
    """From the first evaluation to the last."""
    rewards = run.series("heldout_reward")
    return f"{rewards.values_T[0]:.2f} before, {rewards.values_T[-1]:.2f} after" if rewards else "was not measured"


def ratio(mean: dict[str, float]) -> float:
    return Mean(mean["total"], mean["count"]).value


def ratio_of_sums(figures: Iterable[dict[str, float]]) -> float:
    return sum((Mean(one["total"], one["count"]) for one in figures), Mean()).value


def is_mean(value: object) -> TypeGuard[Mean]:
    return isinstance(value, Mean)
