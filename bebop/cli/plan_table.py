"""`bebop plan` on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bebop.plan.plan import Plan
from bebop.report.wording import percent, seconds, times


def shown(plan: Plan) -> Group:
    """The verdict, decoding per batch, then the step and the head."""
    return Group(Text(plan.verdict, style="bold"), decoding_table(plan), *map(Text, lines(plan)))


def decoding_table(plan: Plan) -> Table:
    """One line per batch size; the length to use is marked."""
    lengths = range(1, len(plan.batches[0].speed_ups))
    caption = "speed of decoding against no drafts, by draft length; * the one to use"
    table = Table("batch", *(f"K={k}" for k in lengths), "use", box=box.SIMPLE_HEAD, caption=caption)
    for one in plan.batches:
        cells = [times(one.speed_ups[k]) + ("*" if k == one.best else "") for k in lengths]
        table.add_row(str(one.batch), *cells, f"K={one.best}" if one.best else "off")
    return table


def lines(plan: Plan) -> Iterator[str]:
    """What the table has no place for."""
    chances = ", ".join(percent()(one) for one in plan.conditional_acceptance)
    yield f"acceptance by depth: {chances} ({plan.origin})"
    if plan.stops_paying_at is None:
        yield f"drafting pays at every batch up to {plan.searched_to}, as far as these costs reach"
    elif plan.stops_paying_at == 1:
        yield "drafting pays at no batch"
    else:
        yield f"drafting stops paying at batch {plan.stops_paying_at}"
    told = f"rollouts at batch {plan.rollout_batch} with K = {plan.num_drafts}: accept length {plan.accept_length:.2f}"
    yield f"{told}, decoding {times(plan.decoding_speed_up)}, with prompts {times(plan.generation_speed_up)}"
    yield from step_lines(plan)
    yield from head_lines(plan)


def step_lines(plan: Plan) -> Iterator[str]:
    step = plan.step
    if step is None:
        yield "step: give --run, or --generation-share"
        return
    share = percent(0)(step.generation_share)
    yield f"step: synchronous {times(step.synchronous)}, asynchronous {times(step.asynchronous)} (generation {share})"
    if step.logged_seconds is not None and step.predicted_seconds is not None:
        before, after = seconds(step.logged_seconds), seconds(step.predicted_seconds)
        yield f"step of the run: {before} becomes {after}, {times(step.speed_up)}"


def head_lines(plan: Plan) -> Iterator[str]:
    head = plan.head
    if head is None:
        yield "head: give --head with --run, or with --generation-share and --step-seconds"
    elif head.break_even_steps is None:
        yield f"head: {seconds(head.training_seconds)} of training are never won back"
    else:
        number = math.ceil(head.break_even_steps)
        saved = seconds(head.saved_per_step)
        yield f"head: {seconds(head.training_seconds)} of training are won back after {number} steps ({saved} a step)"
