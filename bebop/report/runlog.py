"""What is known of a run: its metrics as series over steps, its settings, and where it came from.

Shapes: T steps, B entropy bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from bebop.metrics import Mean, MetricsRow
from bebop.runs import Provenance


class RunKind(Enum):
    """What a run directory is the record of."""

    RL = "train-rl"
    HEAD = "train-mtp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One metric over the steps that logged it: totals and counts, so that any group of steps is pooled rightly."""

    name: str
    steps_T: np.ndarray
    totals_T: np.ndarray
    counts_T: np.ndarray

    @property
    def values_T(self) -> np.ndarray:
        return self.totals_T / self.counts_T

    @property
    def pooled(self) -> float:
        """Sum of totals over sum of counts."""
        return float(self.totals_T.sum() / self.counts_T.sum())

    def __len__(self) -> int:
        return len(self.steps_T)

    def only(self, steps: Sequence[int] | np.ndarray) -> Series:
        """The part at these steps."""
        kept_T = np.isin(self.steps_T, steps)
        return Series(
            name=self.name,
            steps_T=self.steps_T[kept_T],
            totals_T=self.totals_T[kept_T],
            counts_T=self.counts_T[kept_T],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyBins:
    """Drafted positions of every step, sorted into bins by the entropy (nats) of the token's distribution."""

    edges: tuple[float, ...]
    """B + 1 of them; the last may be infinite."""
    steps_T: np.ndarray
    counts_TB: np.ndarray
    entropy_TB: np.ndarray
    """Sums of nats."""
    overlap_TB: np.ndarray
    """Sums of sum_v min(p, q)."""
    accepted_TB: np.ndarray
    drafted_TB: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """A transcript as it was logged; see ``bebop.report.transcripts`` for its shape."""

    step: int
    task: str
    record: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """One run, as far as it was written."""

    name: str
    path: Path
    kind: RunKind
    rows: tuple[MetricsRow, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: tuple[Provenance, ...] = ()
    bins: EntropyBins | None = None
    episodes: tuple[Episode, ...] = ()
    num_episodes: int = 0
    """Transcripts in the run's file, of which ``episodes`` are a sample."""

    def series(self, name: str) -> Series | None:
        """A metric's finite values; None where the run logged none."""
        found = {row.step: row.values[name] for row in self.rows if name in row.values}
        numbers = {step: as_mean(value) for step, value in found.items() if not isinstance(value, str)}
        kept = [(step, mean) for step, mean in sorted(numbers.items()) if math.isfinite(mean.value)]
        if not kept:
            return None
        return Series(
            name=name,
            steps_T=np.array([step for step, _ in kept]),
            totals_T=np.array([mean.total for _, mean in kept], dtype=np.float64),
            counts_T=np.array([mean.count for _, mean in kept], dtype=np.float64),
        )

    @property
    def metric_names(self) -> list[str]:
        """Every name, in the order in which they first occur."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    def numbered(self, prefix: str) -> list[tuple[int, Series]]:
        """Metrics ``prefix1``, ``prefix2`` ..., such as those of every draft depth, by number."""
        numbers = (name.removeprefix(prefix) for name in self.metric_names if name.startswith(prefix))
        found = ((int(number), self.series(prefix + number)) for number in numbers if number.isdigit())
        return sorted(((number, series) for number, series in found if series), key=lambda pair: pair[0])

    def setting(self, *keys: str) -> Any:
        """A value of the configuration by its path of keys; None where there is none."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def is_speculating(self) -> bool:
        """Whether rollouts were drafted by the head."""
        mode = self.setting("mtp", "mode")
        if mode is not None:
            return mode != "none"
        lengths = self.series("mtp/accept_length")
        return lengths is not None and lengths.pooled > 1

    @property
    def seconds(self) -> float:
        """Time the run took: from each start (or resumption) to the last row before the next one; NaN if unknown."""
        starts = [datetime.fromisoformat(one.time).timestamp() for one in self.provenance]
        if not starts or not self.rows:
            return math.nan
        ends = [*starts[1:], math.inf]
        return sum(
            max((row.time - start for row in self.rows if start <= row.time < end), default=0.0)
            for start, end in zip(starts, ends, strict=True)
        )


def as_mean(value: float | int | Mean) -> Mean:
    """A plain number counts once."""
    return value if isinstance(value, Mean) else Mean(total=float(value), count=1)


def common_steps(*series: Series) -> np.ndarray:
    """Steps that all of them logged."""
    steps = series[0].steps_T
    for one in series[1:]:
        steps = np.intersect1d(steps, one.steps_T)
    return steps
