"""What the acts found, in a few lines each, read from what their commands wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from bebop.metrics import Mean, MetricsRow
from bebop.quickstart.acts import output_of
from bebop.runs import RunDirectory

ACCEPTANCE = "acceptance-"
RUN = "rl-"
SECONDS_PER_STEP = "time/step"


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
    lines = []
    base: tuple[float, float] | None = None
    for path in sorted(directory.glob(f"{RUN}*"), key=lambda path: (path.name != "rl-plain", path.name)):
        rows = RunDirectory.open(path).metrics()
        seconds, tokens = total_of(rows, SECONDS_PER_STEP), total_of(rows, "tokens")
        length = mean_of(rows, "mtp/accept_length")
        base = base or (seconds, tokens)
        gain = "" if path.name == "rl-plain" else f", {base[0] / seconds:.2f} times as fast"
        if gain and tokens and base[1]:
            # Updates that replace more groups, or whose answers are longer, are more work.
            gain += f" ({base[0] / base[1] * tokens / seconds:.2f} per token)"
        drafted = f", accept length {length.value:.2f}" if length.count else ""
        lines.append(f"{path.name.removeprefix(RUN)}: {seconds:.0f} s for {last_step(rows)} updates{gain}{drafted}")
        lines.append(f"  held-out reward {heldout(rows)}")
    return lines


def report(directory: Path) -> list[str]:
    summary = output_of(directory, "report").read_text(encoding="utf-8").splitlines()
    return [*summary, f"open {directory / 'report.html'} in a browser"]


def heldout(rows: list[MetricsRow]) -> str:
    """From the first evaluation to the last."""
    values = [value.value for row in rows if is_mean(value := row.values.get("heldout_reward"))]
    return f"{values[0]:.2f} before, {values[-1]:.2f} after" if values else "was not measured"


def last_step(rows: list[MetricsRow]) -> int:
    return rows[-1].step if rows else 0


def mean_of(rows: list[MetricsRow], name: str) -> Mean:
    return sum((value for row in rows if is_mean(value := row.values.get(name))), Mean())


def total_of(rows: list[MetricsRow], name: str) -> float:
    values = (row.values.get(name) for row in rows)
    return sum(value for value in values if isinstance(value, int | float))


def ratio(mean: dict[str, float]) -> float:
    return Mean(mean["total"], mean["count"]).value


def ratio_of_sums(figures: Iterable[dict[str, float]]) -> float:
    return sum((Mean(one["total"], one["count"]) for one in figures), Mean()).value


def is_mean(value: object) -> TypeGuard[Mean]:
    return isinstance(value, Mean)
