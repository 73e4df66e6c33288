"""`bebop audit ENGINE`: is an engine lossless, and does it say the truth about what it samples?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bebop.audit.catalogue import CHECKS
from bebop.audit.plan import FULL, QUICK, AuditPlan
from bebop.audit.plants import PLANTS, planted
from bebop.audit.policies import Format
from bebop.audit.records import AuditReport, Status
from bebop.audit.run import audit
from bebop.audit.server import Served, audit_server
from bebop.audit.subjects import EmbeddedSubject, Subject, VllmSubject
from bebop.errors import UserError
from bebop.models.names import resolve_name

_STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.NOT_SUPPORTED: "yellow"}
_BFLOAT16 = {"law_tolerance": 0.02, "logprob_tolerance": 0.05}
"""For servers, which mostly compute in bfloat16, while the exact law is computed in float32."""

_PROMPT = "Once upon a time"

_QUICK = "One format, two heads, few samples: within 45 seconds for embedded."
_FORMATS = "Formats of the policies written, with commas: mimo, qwen3_5, eagle."
_CHECKS = "Only these checks or groups of them, such as law,stops/token."
_BFLOAT16_HELP = "Allow for rounding: TV 0.02, log-probs 0.05. Always so for a URL."
_POLICY = "For a URL: the policy it serves, a directory or a name."
_MODEL = "For a URL: the model's name there, if it serves several."
_AS_RELEASED = "For vllm: leave the sampling defect of its CPU build as it is."
_PLANT = "Self-test, for embedded: plant this defect, which must fail; 'list' lists them."


def command(
    engine: Annotated[str, typer.Argument(help="embedded, vllm, or the URL of an OpenAI-compatible server.")],
    quick: Annotated[bool, typer.Option("--quick", help=_QUICK)] = False,
    rule: Annotated[str, typer.Option(help="Verification rule of embedded or vllm.")] = "rejection",
    samples: Annotated[int | None, typer.Option(min=100, help="Completions per head and setting.")] = None,
    formats: Annotated[str | None, typer.Option(help=_FORMATS)] = None,
    checks: Annotated[str, typer.Option(help=_CHECKS)] = "",
    seed: Annotated[int, typer.Option(help="Of the requests.")] = 0,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help=_BFLOAT16_HELP)] = False,
    policy: Annotated[str | None, typer.Option(help=_POLICY)] = None,
    model: Annotated[str | None, typer.Option(help=_MODEL)] = None,
    prompt: Annotated[str, typer.Option(help="For a URL: the text that is continued.")] = _PROMPT,
    as_released: Annotated[bool, typer.Option("--as-released", help=_AS_RELEASED)] = False,
    plant: Annotated[str | None, typer.Option(help=_PLANT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Test whether an engine samples exactly from the policy while it speculates.

    Tiny policies are written whose every completion can be enumerated, with heads that draft well, badly or the
    opposite. What the engine samples from them is held against the exact law under many settings, with a correction for
    many tests; so are log-probs, stops, seeds, weight updates and sleep. Exit code 1 where a check failed, else 0.

    Example: [bold]bebop audit embedded --quick[/bold]
    """
    if plant == "list":
        typer.echo("\n".join(f"{name:24} {one.defect}" for name, one in PLANTS.items()))
        return
    plan = make_plan(quick=quick, samples=samples, checks=checks, seed=seed, bfloat16=bfloat16)
    if engine.startswith(("http://", "https://")):
        if plant is not None or formats is not None or as_released or rule != "rejection":
            raise UserError("a server is audited as it runs; drop --rule, --formats, --as-released and --plant")
        served = Served(url=engine, directory=_served_policy(engine, policy), model=model, prompt=prompt)
        report = audit_server(served, replace(plan, **_BFLOAT16), _told)
    else:
        if policy is not None or model is not None or prompt != _PROMPT:
            raise UserError(
                f"{engine} is audited on policies that the audit writes; drop --policy, --model and --prompt, or serve "
                "your checkpoint and give the server's URL"
            )
        subject = subject_named(engine, rule, as_released=as_released)
        with _plant(engine, rule, plant):
            report = audit(subject, _with_formats(plan, subject, formats), _told)
    check_answered(report, plan)
    print(json.dumps(as_data(report), indent=2)) if as_json else print_report(report, Console())
    if not report.passed:
        raise typer.Exit(1)


def make_plan(*, quick: bool, samples: int | None, checks: str, seed: int, bfloat16: bool) -> AuditPlan:
    """The plan of the options; UserError for a check that there is not."""
    only = tuple(filter(None, checks.split(",")))
    names = {check.name for check in CHECKS}
    for name in only:
        if name not in names | {one.partition("/")[0] for one in names}:
            raise UserError(f"there is no check {name!r}; choose of {', '.join(sorted(names))}, or a group of them")
    plan = replace(QUICK if quick else FULL, seed=seed, only=only, **(_BFLOAT16 if bfloat16 else {}))
    return plan if samples is None else replace(plan, num_samples=samples)


def check_answered(report: AuditReport, plan: AuditPlan) -> None:
    """UserError where something asked for by name was not looked at: no verdict on it is no pass."""
    seen = {name for result in report.results for name in (result.check, result.check.partition("/")[0])}
    missing = [name for name in plan.only if name not in seen]
    if missing:
        raise UserError(
            f"{', '.join(missing)} cannot be looked at in {report.engine} with these options; "
            f"drop {'it' if len(missing) == 1 else 'them'} from --checks"
        )


def subject_named(engine: str, rule: str, *, as_released: bool) -> Subject:
    """What ``engine`` names; UserError where it names nothing."""
    match engine:
        case "embedded" if as_released:
            raise UserError("--as-released leaves a defect of vLLM's CPU build as it is; embedded has none, so drop it")
        case "embedded":
            return EmbeddedSubject(rule=rule)
        case "vllm":
            return VllmSubject(rule=rule, as_released=as_released)
    raise UserError(f"there is no engine {engine!r}; write embedded, vllm, or the URL of a server (http://...)")


def as_data(report: AuditReport) -> dict[str, Any]:
    """The report for programs: infinite and undefined effects as text."""
    results = [_plain(asdict(result)) for result in report.results]
    return {"engine": report.engine, "passed": report.passed, "seconds": round(report.seconds, 1), "results": results}


def print_report(report: AuditReport, console: Console) -> None:
    """A table with a row per check, and what failures mean under it."""
    table = Table(
        "check", "result", "effect", "p, corrected", title=f"Audit of {report.engine}", title_justify="left", box=SIMPLE
    )
    for result in report.results:
        style = _STYLES[result.status]
        p_value = "" if result.p_value is None else f"{result.p_value:.2g}"
        effect = "" if result.effect is None else str(result.effect)
        table.add_row(result.check, f"[{style}]{result.status.value}[/{style}]", escape(effect), p_value)
    console.print(table)
    for result in report.results:
        if result.status is not Status.PASS:
            console.print(f"[{_STYLES[result.status]}]{result.check}[/]: {escape(result.explanation)}", highlight=False)
    num_failed = sum(result.status is Status.FAIL for result in report.results)
    console.print(f"{num_failed} of {len(report.results)} checks failed in {report.seconds:.0f} s", highlight=False)


def _told(words: str) -> None:
    print(f"audit: {words}", file=sys.stderr)


def _served_policy(engine: str, policy: str | None) -> str | Path:
    if policy is None:
        raise UserError(f"to audit {engine}, name the policy that it serves with --policy")
    return resolve_name(policy)


def _plant(engine: str, rule: str, plant: str | None) -> AbstractContextManager[object]:
    if plant is None:
        return nullcontext()
    if engine != "embedded" or rule != "rejection":
        raise UserError("defects are planted into the embedded engine with rule rejection; drop --plant or the others")
    return planted(plant)


def _with_formats(plan: AuditPlan, subject: Subject, formats: str | None) -> AuditPlan:
    """The formats asked for, else those of the plan that the engine loads."""
    if formats is None:
        return replace(plan, formats=tuple(one for one in plan.formats if one in subject.formats))
    names = formats.split(",")
    for name in names:
        if name not in {one.value for one in Format}:
            raise UserError(f"there is no format {name!r}; choose of {', '.join(one.value for one in Format)}")
    return replace(plan, formats=tuple(Format(name) for name in names))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
