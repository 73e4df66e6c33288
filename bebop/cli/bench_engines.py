"""Engines side by side, for ``bebop bench decode --engine``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rich import box
from rich.table import Table

from bebop.bench.decode import DecodeBench, task_prompts
from bebop.bench.engines import EngineBench, bench_engines
from bebop.cli.devices import chosen_device, chosen_dtype
from bebop.errors import UserError
from bebop.models.names import resolve_name
from bebop.models.policy import load_policy

Ticks = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]


def engine_bench(names: str, bench: DecodeBench) -> EngineBench:
    """The comparison that is asked for, with the settings it shares with the decoding bench."""
    fixed = tuple(k for k in bench.draft_lengths if isinstance(k, int))
    if len(fixed) < len(bench.draft_lengths):
        raise UserError("--k auto is the embedded engine's; give numbers of draft tokens to compare engines")
    return EngineBench(
        engines=tuple(names.split(",")),  # type: ignore[arg-type]
        batches=bench.batches,
        draft_lengths=fixed,
        rule=bench.rule,
        tokens=bench.tokens,
        temperature=bench.temperature,
        repetitions=bench.repetitions,
    )


def compare_engines(policy: str, task: str, bench: EngineBench, dtype: str, ticks: Ticks) -> dict[str, Any]:
    """Run the comparison on a task's prompts. ``ticks`` shows progress: a title and a number of steps to a context."""
    directory = resolve_name(policy)
    prompts = task_prompts(load_policy(directory), task, max(bench.batches))
    number_format = chosen_dtype(dtype, chosen_device("auto"))
    with ticks("bench decode", len(bench.batches) * (bench.repetitions + 1)) as tick:
        return bench_engines(directory, prompts, bench, dtype=number_format, report=tick)


def engines_table(result: dict[str, Any]) -> Table:
    """One line per batch size and arm; the ratio is the first engine's speed over this one's, draft length alike."""
    first = result["bench"]["engines"][0]
    grid = Table("batch", "arm", "tokens/s", "spread", f"{first} /", "length", box=box.SIMPLE_HEAD, pad_edge=False)
    for batch, figures in result["batches"].items():
        for label, arm in figures["arms"].items():
            speed, ratio = arm["tokens_per_second"], figures[f"{first}_over"].get(label)
            grid.add_row(
                batch,
                label,
                f"{speed['median']:.0f}",
                f"{100 * (speed['max'] - speed['min']) / speed['median']:.0f}%",
                "" if ratio is None else f"{ratio['median']:.2f}",
                "" if arm["accept_length"] is None else f"{arm['accept_length']:.2f}",
            )
        grid.add_section()
    return grid
