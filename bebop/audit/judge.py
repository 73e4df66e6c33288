"""From evidence to verdicts: one correction for all tests of the audit, one row per check."""

from __future__ import annotations

from collections.abc import Sequence

from bebop.audit.catalogue import CHECKS, Check
from bebop.audit.fit import Fit, holm
from bebop.audit.plan import AuditPlan
from bebop.audit.records import CheckResult, Effect, Evidence, Status

_CONTROLS = ("control/exact", "control/biased")


def judge(evidence: Sequence[Evidence], plan: AuditPlan) -> tuple[CheckResult, ...]:
    """A row for every check that there is evidence on, in the catalogue's order."""
    fits = [one for item in evidence if item.check not in _CONTROLS for one in item.fits]
    adjusted = dict(zip(map(id, fits), holm([one.p_value for one in fits]), strict=True))
    for item in evidence:
        if item.check in _CONTROLS:
            adjusted |= {id(one): min(1.0, one.p_value * max(len(fits), len(item.fits))) for one in item.fits}
    rows = []
    for check in CHECKS:
        mine = [item for item in evidence if item.check == check.name]
        if mine:
            rows.append(_row(check, mine, adjusted, plan))
    return tuple(rows)


def _row(check: Check, evidence: Sequence[Evidence], adjusted: dict[int, float], plan: AuditPlan) -> CheckResult:
    seen = [item for item in evidence if item.refusal is None]
    if not seen:
        return _result(check, Status.NOT_SUPPORTED, evidence[0].refusal or "")
    fits = sorted((one for item in seen for one in item.fits), key=lambda one: (adjusted[id(one)], -one.excess))
    faults = [fault for item in seen for fault in item.faults]
    rejected = [one for one in fits if adjusted[id(one)] < plan.alpha and one.excess > plan.law_tolerance]
    p_value = adjusted[id(fits[0])] if fits else None
    effect = _effect(fits[0]) if fits and not faults else _worst(seen)
    if check.name == "control/biased":
        status = Status.PASS if rejected else Status.FAIL
        return _result(check, status, check.meaning if not rejected else _compared(fits), _worst(seen), p_value)
    if not (faults or rejected):
        return _result(check, Status.PASS, _compared(fits), effect, p_value)
    pattern = next((item.pattern for item in seen if item.pattern and _has_failed(item, rejected)), None)
    where = faults[0] if faults else f"worst at {rejected[0].name}"
    return _result(check, Status.FAIL, " ".join(filter(None, (check.meaning, pattern, f"({where})"))), effect, p_value)


def _has_failed(item: Evidence, rejected: Sequence[Fit]) -> bool:
    return bool(item.faults) or any(one in rejected for one in item.fits)


def _result(
    check: Check, status: Status, explanation: str, effect: Effect | None = None, p_value: float | None = None
) -> CheckResult:
    return CheckResult(
        check=check.name,
        question=check.question,
        status=status,
        effect=effect,
        p_value=p_value,
        explanation=explanation,
    )


def _effect(fit: Fit) -> Effect:
    if fit.outside:
        return Effect(value=fit.outside, unit="outside support", noise=0.0)
    return Effect(value=fit.distance, unit="TV", noise=fit.noise)


def _worst(evidence: Sequence[Evidence]) -> Effect | None:
    """The largest effect of the looks that found a fault, or of all where none did."""
    failed = [item for item in evidence if item.faults] or evidence
    effects = [item.effect for item in failed if item.effect is not None]
    return max(effects, key=lambda effect: effect.value, default=None)


def _compared(fits: Sequence[Fit]) -> str:
    return f"{len(fits)} tests on {max(one.num_samples for one in fits)} samples or fewer each" if fits else ""
