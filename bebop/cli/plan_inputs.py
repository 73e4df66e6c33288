"""Where `bebop plan` takes acceptance and costs from: a measurement here, a file of one, or given numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bebop.cli.counting import ticker
from bebop.cli.devices import default_device
from bebop.cli.progress import progress
from bebop.engines.embedded.rules import rule_named
from bebop.errors import UserError
from bebop.models.policy import load_policy, recommended_dtype
from bebop.plan.decoding import Acceptance, LinearCosts
from bebop.plan.measurement import Measured, Wanted, from_bench, measure, num_ticks
from bebop.plan.plan import Known, reachable

Number = TypeVar("Number", int, float)
DEFAULT_POLICY = "tiny"


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What was said on the command line; None where it was not."""

    policy: str | None
    bench: Path | None
    acceptance: str | None
    costs: str
    """Of a token and of a draft step."""


def known_from(given: Given, wanted: Wanted, rollout_batch: int) -> Known:
    """From a file or a policy; an acceptance beside it takes the place of the measured one, and alone is enough."""
    acceptance = Acceptance(conditional_K=parsed(given.acceptance, "--acceptance", float)) if given.acceptance else None
    if given.policy is not None and given.bench is not None:
        raise UserError("--policy measures and --bench reads a measurement; give one of them")
    if given.bench is not None:
        measured, origin = from_file(given.bench), f"measured, {given.bench}"
    elif given.policy is not None or acceptance is None:
        name = given.policy or DEFAULT_POLICY
        measured, origin = measured_here(name, wanted), f"measured here on {name}, rule {wanted.rule}"
    else:
        return Known(acceptance=acceptance, costs=linear_costs(given.costs), origin="given numbers")
    return Known(
        acceptance=acceptance or measured.acceptance,
        costs=measured.costs,
        origin=origin if acceptance is None else f"{origin}; acceptance given",
        largest_batch=reachable(list(measured.costs.table)),
        prefill_share=measured.prefill_share(rollout_batch),
    )


def linear_costs(text: str) -> LinearCosts:
    """``TOKEN,DRAFT``."""
    numbers = parsed(text, "--costs", float)
    if len(numbers) != 2:
        raise UserError(f"--costs is {text!r}; give the cost of a token and that of a draft step, such as 0.01,0.1")
    return LinearCosts(token_cost=numbers[0], draft_cost=numbers[1])


def from_file(path: Path) -> Measured:
    try:
        return from_bench(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; make one with `bebop bench decode {path} --json`") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON; give the file of `bebop bench decode --json`") from error


def measured_here(name: str, wanted: Wanted) -> Measured:
    rule_named(wanted.rule)
    device = default_device()
    policy = load_policy(name, dtype=recommended_dtype(device), device=device)
    if policy.head is None:
        raise UserError(f"the policy {name} has no MTP head to measure; give --acceptance, or train a head first")
    with progress("measuring", num_ticks(wanted)) as show:
        tick: Callable[[], None] = ticker(show, "repetitions")
        return measure(policy, wanted, lambda _: tick())


def parsed(text: str, option: str, number: type[Number]) -> tuple[Number, ...]:
    """``1,4,16`` as numbers."""
    try:
        return tuple(number(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} is {text!r}; give numbers with commas between them, such as 1,4,16") from error
