"""What checks see, and what an audit says of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bebop.audit.fit import Fit


class Status(Enum):
    """The end of a check."""

    PASS = "pass"
    FAIL = "fail"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """The size of what a check saw, in its unit; ``noise`` is what an exact engine would show on average."""

    value: float
    unit: str
    noise: float | None = None

    def __str__(self) -> str:
        noise = "" if self.noise is None else f" (noise {self.noise:.2g})"
        return f"{self.unit} {self.value:.2g}{noise}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What one look at the engine says for or against one check, before the correction for many tests.

    ``faults`` are violations that no chance explains, as sentences. ``refusal`` is why the look was not possible.
    ``pattern`` names the defect that explains a failure, where one is recognised.
    """

    check: str
    fits: tuple[Fit, ...] = ()
    faults: tuple[str, ...] = ()
    effect: Effect | None = None
    refusal: str | None = None
    pattern: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One row of the table. ``p_value`` is the smallest of the row after Holm's correction over the whole audit."""

    check: str
    question: str
    status: Status
    effect: Effect | None
    p_value: float | None
    explanation: str
    """Of a pass: what was compared; of a failure: what it means; otherwise: why the check was not possible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """An engine's audit."""

    engine: str
    results: tuple[CheckResult, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(result.status is not Status.FAIL for result in self.results)
