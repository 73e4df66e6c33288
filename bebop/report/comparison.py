"""The runs side by side: which colour each has, and against which the others are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bebop.errors import UserError
from bebop.report.analysis import Estimate
from bebop.report.charts import arm_colour
from bebop.report.reading import Inputs
from bebop.report.runlog import RunLog, Series


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A run and its colour."""

    run: RunLog
    colour: str

    @property
    def name(self) -> str:
        return self.run.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What every section is built from."""

    inputs: Inputs
    arms: tuple[Arm, ...]
    baseline: RunLog | None
    """The run without speculation that speeds are measured against; None where there is none."""
    refitted: Mapping[str, Estimate] = field(default_factory=dict)
    """Run's name -> accept length of a head refitted on its final policy."""

    def with_series(self, name: str) -> list[tuple[Arm, Series]]:
        """The arms that logged a metric."""
        found = ((arm, arm.run.series(name)) for arm in self.arms)
        return [(arm, series) for arm, series in found if series is not None]

    @property
    def speculating(self) -> list[Arm]:
        """Arms whose rollouts were drafted."""
        return [arm for arm in self.arms if arm.run.is_speculating]

    @property
    def others(self) -> list[Arm]:
        """Arms that are measured against the baseline."""
        return [arm for arm in self.arms if self.baseline is not None and arm.run is not self.baseline]


def compare(inputs: Inputs, baseline: str | None, refitted: Mapping[str, Estimate]) -> Comparison:
    """UserError where ``baseline`` or a refitted head names no run, or a refitted head one that has not drafted."""
    names = [run.name for run in inputs.runs]
    for name in (*refitted, *filter(None, (baseline,))):
        if name not in names:
            raise UserError(f"there is no run {name!r} among {', '.join(names) or 'those given'}; name one of them")
    for run in inputs.runs:
        if run.name in refitted and run.series("mtp/accept_length") is None:
            raise UserError(
                f"{run.name} has logged no mtp/accept_length to compare with that of a refitted head; leave out "
                f"--refitted {run.name}=... until the run has drafted a step"
            )
    return Comparison(
        inputs=inputs,
        arms=tuple(Arm(run=run, colour=arm_colour(place)) for place, run in enumerate(inputs.runs)),
        baseline=choose_baseline(inputs.runs, baseline),
        refitted=refitted,
    )


def choose_baseline(runs: Sequence[RunLog], name: str | None) -> RunLog | None:
    """The named run, else the first one without speculation if others speculate."""
    if name is not None:
        return next(run for run in runs if run.name == name)
    plain = [run for run in runs if not run.is_speculating]
    return plain[0] if plain and len(plain) < len(runs) else None
