"""Metrics as sums and counts, one JSON object per line.

A line is ``{"step": 3, "time": 1e9, "name": value, ...}``; a ``Mean`` is kept as ``{"total": ..., "count": ...}``, so
that whoever reads several lines adds them and divides once. JSON has no non-finite numbers: they are written as
the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, and a value that is such a text as ``{"text": "NaN"}``.
"""

import errno
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bebop.errors import UserError
from bebop.files import atomic_write

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_RESERVED = frozenset({"step", "time"})


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that can be added: ``sum(means, Mean())`` weighs every item equally, whichever part it came in."""

    total: float = 0.0
    """Sum over the items."""
    count: float = 0.0
    """Number of items."""

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """``total / count``; NaN for no items."""
        return self.total / self.count if self.count else math.nan


MetricValue = float | int | str | Mean


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsRow:
    """One line of a metrics file."""

    step: int
    time: float
    """Seconds since the epoch when the line was written."""
    values: dict[str, MetricValue]


class Dashboard(Protocol):
    """Where numbers go besides the file; ``bebop.dashboards`` has the adapters."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Appends rows to a JSONL file, each in one ``write`` call, and passes the numbers on to the dashboards.

    ``keep_through`` drops the rows after that step first: a run resumed from step 40 writes step 41 again. What a crash
    left of a last line is dropped as well.
    """

    def __init__(
        self, path: str | Path, *, keep_through: int | None = None, dashboards: Sequence[Dashboard] = ()
    ) -> None:
        self.path = Path(path)
        if self.path.exists():
            rows = read_metrics(self.path)
            kept = rows if keep_through is None else [row for row in rows if row.step <= keep_through]
            atomic_write(self.path, b"".join(map(_line, kept)))
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._dashboards = tuple(dashboards)

    def write(self, step: int, values: Mapping[str, MetricValue]) -> None:
        """Append ``values`` as the row of ``step``; names read like paths, ``draft/accept_rate@2``."""
        assert not _RESERVED & values.keys(), f"{sorted(_RESERVED & values.keys())} name the row itself"
        line = _line(MetricsRow(step=step, time=time.time(), values=dict(values)))
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written", str(self.path))
        numbers = {name: float(_number(value)) for name, value in values.items() if not isinstance(value, str)}
        for dashboard in self._dashboards:
            dashboard.log(step, numbers)

    def close(self) -> None:
        """Close the file and the dashboards; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            for dashboard in self._dashboards:
                dashboard.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[MetricsRow]:
    """Every whole row of a metrics file, also while it is being written: a last line without its newline is ignored.

    Raises ``UserError`` naming file and line where an earlier line is not a row.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [_row(line, path, number) for number, line in enumerate(lines, start=1)]


def _number(value: float | int | Mean) -> float:
    return value.value if isinstance(value, Mean) else value


def _line(row: MetricsRow) -> bytes:
    record = {"step": row.step, "time": row.time} | {name: _encode(value) for name, value in row.values.items()}
    # UTF-8 has no lone surrogates; Python's escape for one is JSON's, too.
    return (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _encode(value: MetricValue) -> object:
    if isinstance(value, Mean):
        return {"total": _encode(value.total), "count": _encode(value.count)}
    if isinstance(value, str) and value in _NON_FINITE:
        return {"text": value}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _decode(value: object) -> MetricValue:
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            return value["text"]
        return Mean(_decode_number(value["total"]), _decode_number(value["count"]))
    return value if isinstance(value, str) and value not in _NON_FINITE else _decode_number(value)


def _decode_number(value: object) -> float | int:
    if isinstance(value, str):
        return _NON_FINITE[value]
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is not a number")
    return value


def _row(line: bytes, path: str | Path, number: int) -> MetricsRow:
    try:
        record = json.loads(line)
        step, moment = record.pop("step"), record.pop("time")
        return MetricsRow(step=step, time=moment, values={name: _decode(value) for name, value in record.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}, line {number}: not a row of metrics; delete that line") from error
