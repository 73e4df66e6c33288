"""Arms of several seeds: what they learnt, how long a step took, and whether two arms differ.

``python -m bebop.report.seeds ARM=RUN,RUN... [ARM=RUN,RUN...]... [--json FILE]``, for example ::

    python -m bebop.report.seeds with=runs/with-1,runs/with-2 without=runs/without-1,runs/without-2

Arms are compared by exact permutation of the seeds between them: the share of all assignments under which the means
lie at least as far apart as they do. A high share does not show that the arms are equal, so the difference stands
beside it with an interval.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bebop.errors import UserError, run_as_program
from bebop.report.analysis import Estimate, student_quantile
from bebop.report.analysis_time import STEP, timed
from bebop.report.reading import read_run
from bebop.report.runlog import RunLog, Series

HELDOUT = "heldout_reward"
REWARD = "reward"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSummary:
    """One arm. Rewards are means of each seed's figures; lists hold one figure a seed."""

    name: str
    num_seeds: int
    num_steps: int
    heldout_before: dict[str, float]
    """By task, and ``all``; nothing where the runs were not evaluated."""
    heldout_after: dict[str, float]
    heldout_gain: dict[str, list[float]]
    training_reward: list[float]
    """Mean over all episodes of the run."""
    heldout_reward: list[float]
    """After the last step, over all tasks."""
    step_seconds: list[float]
    """Mean over steps, the first and the end of the run left out (``analysis_time.timed``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Whether two arms differ in one figure."""

    figure: str
    arms: tuple[str, str]
    difference: Estimate
    """Mean of the first less that of the second; 95% interval of Student's t, one figure a seed."""
    p_value: float
    """Two-sided, by permutation of seeds."""


def main(words: Sequence[str]) -> None:
    """``ARM=RUN,RUN... [--json FILE]``"""
    file = None
    if "--json" in words[:-1]:
        place = words.index("--json")
        file, words = Path(words[place + 1]), [*words[:place], *words[place + 2 :]]
    arms = [summary(*word.split("=", 1)) for word in words if "=" in word]
    if not arms or len(arms) < len(words):
        raise UserError("give arms as NAME=RUN,RUN..., and --json FILE at most once")
    comparisons = [one for pair in itertools.combinations(arms, 2) for one in compared(*pair)]
    print("\n".join(table(arms)))
    print("\n".join(sentence(one) for one in comparisons))
    if file is not None:
        report = {"arms": [asdict(one) for one in arms], "comparisons": [asdict(one) for one in comparisons]}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def summary(name: str, paths: str) -> ArmSummary:
    """Of the runs in these directories, separated by commas."""
    runs = [read_run(Path(path), []) for path in paths.split(",")]
    tasks = [str(task["name"]) for task in runs[0].setting("tasks") or ()]
    is_evaluated = any(run.series(HELDOUT) for run in runs)
    names = {"all": HELDOUT} | {task: f"{HELDOUT}/{task}" for task in tasks} if is_evaluated else {}
    before = {key: [float(wanted(run, metric).values_T[0]) for run in runs] for key, metric in names.items()}
    after = {key: [float(wanted(run, metric).values_T[-1]) for run in runs] for key, metric in names.items()}
    gains = {key: [end - start for start, end in zip(before[key], after[key], strict=True)] for key in names}
    return ArmSummary(
        name=name,
        num_seeds=len(runs),
        num_steps=max((row.step for run in runs for row in run.rows), default=0),
        heldout_before={key: float(np.mean(values)) for key, values in before.items()},
        heldout_after={key: float(np.mean(values)) for key, values in after.items()},
        heldout_gain=gains,
        training_reward=[wanted(run, REWARD).pooled for run in runs],
        heldout_reward=after.get("all", []),
        step_seconds=[seconds.pooled for run in runs if (seconds := timed(run, STEP))],
    )


def wanted(run: RunLog, metric: str) -> Series:
    series = run.series(metric)
    if series is None:
        raise UserError(
            f"{run.path} logged no {metric}; give runs of train-rl, all with evaluation.every above 0 or none"
        )
    return series


def compared(one: ArmSummary, other: ArmSummary) -> list[Comparison]:
    """Rewards while training, and held-out ones at the end."""
    figures = {
        "training reward": (one.training_reward, other.training_reward),
        "held-out reward": (one.heldout_reward, other.heldout_reward),
    }
    return [
        Comparison(
            figure=figure,
            arms=(one.name, other.name),
            difference=difference_of_means(left, right),
            p_value=permutation_p(left, right),
        )
        for figure, (left, right) in figures.items()
        if left and right
    ]


def difference_of_means(left: Sequence[float], right: Sequence[float]) -> Estimate:
    """Welch's interval with the degrees of freedom of the smaller side, which is never too narrow."""
    gap = float(np.mean(left) - np.mean(right))
    degrees = min(len(left), len(right)) - 1
    if degrees < 1:
        return Estimate(value=gap)
    half = student_quantile(degrees) * math.sqrt(np.var(left, ddof=1) / len(left) + np.var(right, ddof=1) / len(right))
    return Estimate(value=gap, low=gap - half, high=gap + half)


def permutation_p(left: Sequence[float], right: Sequence[float]) -> float:
    """Share of the assignments of all values to the two sides whose means differ by at least what they do."""
    values = np.array([*left, *right])
    total, size = values.sum(), len(left)
    sums = np.array([values[list(chosen)].sum() for chosen in itertools.combinations(range(len(values)), size)])
    differences = np.abs(sums / size - (total - sums) / len(right))
    return float(np.mean(differences >= differences[0] - 1e-12))


def table(arms: Sequence[ArmSummary]) -> list[str]:
    """Markdown: reward while training, and held-out reward by task, before and after."""
    tasks = [task for task in arms[0].heldout_before if all(task in arm.heldout_before for arm in arms)]
    columns = ["arm", "seeds", "steps", "training reward", *tasks, "s/step"]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for arm in arms:
        heldout = [f"{arm.heldout_before[task]:.2f} to {arm.heldout_after[task]:.2f}" for task in tasks]
        seconds = f"{np.mean(arm.step_seconds):.2f}" if arm.step_seconds else ""
        cells = [arm.name, str(arm.num_seeds), str(arm.num_steps), f"{np.mean(arm.training_reward):.2f}", *heldout]
        lines.append(f"| {' | '.join([*cells, seconds])} |")
    return lines


def without_nan(value: Any) -> Any:
    """JSON has no NaN: bounds that are not known become null."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def sentence(one: Comparison) -> str:
    gap = one.difference
    interval = f"{gap.low:+.3f} to {gap.high:+.3f}" if gap.has_interval else "no interval from one seed"
    return (
        f"{one.figure}, {one.arms[0]} less {one.arms[1]}: {gap.value:+.3f} ({interval}), "
        f"permutation p = {one.p_value:.2f}"
    )


if __name__ == "__main__":
    run_as_program(main)
