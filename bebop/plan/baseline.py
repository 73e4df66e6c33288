"""What a run without speculation says of a step, and what a head's training cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bebop.errors import UserError
from bebop.plan.steps import LoggedStep
from bebop.report.analysis_time import step_time
from bebop.report.reading import read_run
from bebop.report.runlog import RunLog


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A run to be made faster."""

    step: LoggedStep
    rows: int | None
    """Episodes that an engine plays at once; None where the run does not say."""
    steps: int | None
    """Planned length."""


def read_baseline(path: Path) -> Baseline:
    """UserError for a run that drafts already, or that did not log where its time went."""
    run = read_run(path, [])
    if run.is_speculating:
        raise UserError(f"{path} drafts already; give a run with mtp.mode=none, a few steps are enough")
    time = step_time(run)
    generation = time.beside.get("generation") if time else None
    exposed = time.parts.get("exposed generation") if time else None
    if time is None or generation is None or exposed is None:
        raise UserError(f"{path} has no time/step, time/generation and time/exposed_generation; give another run")
    workers = setting(run, "rollout", "workers") or 1
    step = LoggedStep(step=time.step.value, exposed=exposed.value, generation=generation.value / workers)
    return Baseline(step=step, rows=mean_rows(run) or most_rows(run, workers), steps=setting(run, "steps"))


def mean_rows(run: RunLog) -> int | None:
    """Rows that an engine ran, in the mean over the time it was busy; None where the run did not log them."""
    logged = run.series("rollout/rows")
    return None if logged is None else max(1, round(logged.pooled))


def most_rows(run: RunLog, workers: int) -> int | None:
    """An engine's rows, or fewer where the groups under way do not fill them."""
    rows = setting(run, "rollout", "rows")
    lag, groups, size = setting(run, "async", "max_lag"), setting(run, "groups_per_step"), setting(run, "group_size")
    if rows is None or lag is None or groups is None or size is None:
        return rows
    return max(1, min(rows, (lag + 1) * groups * size // workers))


def setting(run: RunLog, *keys: str) -> int | None:
    value = run.setting(*keys)
    return value if isinstance(value, int) else None


def training_seconds(text: str) -> float:
    """Seconds as they are, or those of a `train-mtp` run."""
    try:
        seconds = float(text)
    except ValueError:
        if not Path(text).is_dir():
            raise UserError(f"--head has {text!r}; give seconds, or a run directory of `bebop train-mtp`") from None
        seconds = read_run(Path(text), []).seconds
    if not math.isfinite(seconds) or seconds < 0:
        raise UserError(f"the training time of {text} is not known; give seconds, or a run of `bebop train-mtp`")
    return seconds
