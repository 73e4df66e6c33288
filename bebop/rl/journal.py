"""What a run writes down: a row of metrics per step, sampled transcripts, entropy bins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bebop.dashboards import DashboardConfig, open_dashboard
from bebop.files import atomic_write
from bebop.metrics import MetricValue
from bebop.runs import RunDirectory

TRANSCRIPTS, BINS = "transcripts.jsonl", "bins.jsonl"


class StepRows:
    """A JSONL file whose rows carry their ``step``; rows after ``keep_through`` are dropped at the start."""

    def __init__(self, path: Path, keep_through: int) -> None:
        if path.exists():
            whole = path.read_bytes().split(b"\n")[:-1]
            kept = [line for line in whole if json.loads(line)["step"] <= keep_through]
            atomic_write(path, b"".join(line + b"\n" for line in kept))
        self._file = path.open("ab", buffering=0)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        self._file.close()


class Journal:
    """The files of a run that goes on after step ``last``; -1 is a run that begins."""

    def __init__(self, run: RunDirectory, last: int, dashboards: Iterable[DashboardConfig]) -> None:
        opened = [open_dashboard(one, run.path) for one in dashboards]
        self._metrics = run.metrics_writer(keep_through=last, dashboards=opened)
        self._transcripts = StepRows(run.path / TRANSCRIPTS, last)
        self._bins = StepRows(run.path / BINS, last)

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        self._metrics.write(step, metrics)

    def write_rows(self, transcripts: Iterable[Mapping[str, Any]], bins: Mapping[str, Any]) -> None:
        self._transcripts.write(transcripts)
        self._bins.write([bins])

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in (self._metrics, self._transcripts, self._bins):
            one.close()
