"""Reads what runs wrote: directories of `bebop train-rl` and `bebop train-mtp`, tables of `bebop eval-mtp --json`.

A run that still goes on, or was cut off, is read as far as it got. What is missing is missing; what is there and broken
is left out with a note that says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bebop.errors import UserError
from bebop.metrics import MetricsRow
from bebop.report.evaluations import Evaluation, read_evaluation
from bebop.report.runlog import EntropyBins, RunKind, RunLog
from bebop.report.transcripts import read_episodes
from bebop.runs import RunDirectory

HEAD_METRIC = "mtp/expected_accepted"
"""Logged by the training of a head alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Everything a report is made from."""

    runs: tuple[RunLog, ...] = ()
    heads: tuple[RunLog, ...] = ()
    """Runs that trained a head."""
    evaluations: tuple[Evaluation, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be read, one sentence each."""


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Read every path; UserError for one that is neither a run nor an evaluation, or when none has a metric yet."""
    notes: list[str] = []
    logs: list[RunLog] = []
    evaluations: list[Evaluation] = []
    for path in paths:
        if path.is_file():
            evaluations.append(read_evaluation(path))
            continue
        log = read_run(path, notes)
        if log.rows:
            logs.append(log)
        else:
            notes.append(f"{path} has no metrics yet and is left out.")
    if not logs and not evaluations:
        raise UserError(f"there is nothing to report in {', '.join(map(str, paths))}; wait for a run's first step")
    logs = with_unique_names(logs)
    return Inputs(
        runs=tuple(one for one in logs if one.kind is RunKind.RL),
        heads=tuple(one for one in logs if one.kind is RunKind.HEAD),
        evaluations=tuple(evaluations),
        notes=tuple(notes),
    )


def read_run(path: Path, notes: list[str]) -> RunLog:
    """The run in a directory; what is broken in it is added to ``notes``."""
    if not path.is_dir():
        raise UserError(f"there is no run {path}; give a run directory or a file of `bebop eval-mtp --json`")
    run = RunDirectory(path)
    if not run.config_path.is_file() and not run.metrics_path.is_file():
        raise UserError(f"{path} has neither config.yaml nor metrics.jsonl; give the directory of a run")
    rows = tuple(run.metrics())
    episodes, num_episodes = read_episodes(path / "transcripts.jsonl", notes)
    return RunLog(
        name=path.resolve().name,
        path=path,
        kind=RunKind.HEAD if is_head_training(rows) else RunKind.RL,
        rows=rows,
        config=read_config(run.config_path, notes),
        provenance=tuple(run.provenance()) if (path / "provenance.json").is_file() else (),
        bins=read_bins(path / "bins.jsonl", notes),
        episodes=episodes,
        num_episodes=num_episodes,
    )


def is_head_training(rows: Sequence[MetricsRow]) -> bool:
    return any(HEAD_METRIC in row.values for row in rows)


def read_config(path: Path, notes: list[str]) -> dict[str, Any]:
    """The settings as written, unchecked: other versions and other programs have other ones."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        notes.append(f"{path} is not a mapping in YAML; settings are not shown.")
        return {}
    return config


def read_bins(path: Path, notes: list[str]) -> EntropyBins | None:
    """Steps with the file's first edges; a step written twice (after a resumption) counts once, the last time."""
    found: dict[int, dict[str, Any]] = {}
    broken = 0
    for record in json_lines(path):
        if is_bins(record) and record["edges"] == next(iter(found.values()), record)["edges"]:
            found[record["step"]] = record
        else:
            broken += 1
    if broken:
        notes.append(f"{path}: {broken} lines are not entropy bins (or have other edges) and are left out.")
    if not found:
        return None
    rows = [found[step] for step in sorted(found)]

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=np.float64)

    return EntropyBins(
        edges=tuple(math.inf if edge in ("inf", "Infinity", None) else float(edge) for edge in rows[0]["edges"]),
        steps_T=np.array(sorted(found)),
        counts_TB=column("count"),
        entropy_TB=column("entropy_sum"),
        overlap_TB=column("overlap_sum"),
        accepted_TB=column("accepted"),
        drafted_TB=column("drafted"),
    )


def is_bins(record: Any) -> bool:
    """Whether a line has the shape that ``read_bins`` needs."""
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return False
    edges = record.get("edges")
    if not isinstance(edges, list) or len(edges) < 2:
        return False
    columns = [record.get(name) for name in ("count", "entropy_sum", "overlap_sum", "accepted", "drafted")]
    return all(
        isinstance(one, list) and len(one) == len(edges) - 1 and all(isinstance(value, int | float) for value in one)
        for one in columns
    )


def json_lines(path: Path) -> Iterator[Any]:
    """Every whole line as JSON, None for one that is not; nothing for a file that is not there."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield parsed(line)


def parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def with_unique_names(logs: Sequence[RunLog]) -> list[RunLog]:
    """Runs of one name get their parent directory's before it, and a number if that is not enough."""
    short = [one.name for one in logs]
    long = [f"{one.path.resolve().parent.name}/{one.name}" if short.count(one.name) > 1 else one.name for one in logs]
    numbers = [long[: place + 1].count(name) for place, name in enumerate(long)]
    return [
        replace(one, name=name if number == 1 else f"{name} ({number})")
        for one, name, number in zip(logs, long, numbers, strict=True)
    ]
