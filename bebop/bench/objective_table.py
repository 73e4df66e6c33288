"""The comparison of objectives as tables: means and spreads over seeds, differences within a seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bebop.bench.objective_arms import PLAYED_RULES, ArmKind, ArmResult
from bebop.bench.objective_config import ObjectiveBench
from bebop.files import atomic_write
from bebop.runs import RunDirectory

Figure = Callable[[ArmResult], float]


def write_results(bench: ObjectiveBench, results: Sequence[ArmResult], run: RunDirectory) -> None:
    """``results.json`` and ``results.md`` in the run directory."""
    record = {
        "provenance": [asdict(one) for one in run.provenance()],
        "settings": bench.model_dump(mode="json"),
        "summary": summary(bench, results),
        "arms": [{**asdict(one), "rates": rates(one)} for one in results],
    }
    atomic_write(run.path / "results.json", json.dumps(record, indent=2) + "\n")
    atomic_write(run.path / "results.md", "\n".join(page(bench, results, run)) + "\n")


def rates(result: ArmResult) -> dict[str, dict[str, float]]:
    """Task -> rule -> acceptance rate."""
    return {task: {rule: result.rate(rule, task) for rule in rules_of(result)} for task in result.figures}


def rules_of(result: ArmResult) -> list[str]:
    ending = "/estimated_round_length"
    names = next(iter(result.figures.values()))
    return [name.removesuffix(ending) for name in names if name.endswith(ending)]


def of_kind(results: Sequence[ArmResult], kind: ArmKind, objective: str) -> dict[int, ArmResult]:
    """Seed -> result."""
    return {one.arm.seed: one for one in results if one.arm.kind == kind and one.arm.objective == objective}


def summary(bench: ObjectiveBench, results: Sequence[ArmResult]) -> dict[str, Any]:
    """Rejection's acceptance rate, tasks counting alike: mean over seeds, and differences within a seed."""
    found: dict[str, Any] = {}
    for objective in bench.arms.objectives:
        mine = of_kind(results, "from_start", objective)
        others = {name: of_kind(results, "from_start", name) for name in ("ce", "kl") if name != objective}
        found[objective] = {
            "rejection": [one.mean_rate("rejection") for one in mine.values()],
            "target_only": [one.mean_rate("target_only") for one in mine.values() if "target_only" in rules_of(one)],
            **{f"rejection_over_{name}": differences(mine, theirs) for name, theirs in others.items()},
        }
    for objective in bench.arms.fresh:
        mine = of_kind(results, "fresh", objective)
        found[f"fresh {objective}"] = {
            "rejection": [one.mean_rate("rejection") for one in mine.values()],
            "rejection_over_kl_first": differences(mine, of_kind(results, "from_start", objective)),
        }
    return found


def differences(mine: dict[int, ArmResult], theirs: dict[int, ArmResult]) -> list[float]:
    """Of mean rejection rates, one per seed that both have."""
    return [mine[seed].mean_rate("rejection") - theirs[seed].mean_rate("rejection") for seed in mine if seed in theirs]


def page(bench: ObjectiveBench, results: Sequence[ArmResult], run: RunDirectory) -> Iterator[str]:
    first = run.provenance()[0]
    yield f"# Objectives of the head: `{bench.policy}`"
    yield ""
    yield f"`{first.command}`, revision {first.revision}, {first.hardware}."
    yield ""
    yield (
        f"{told_steps(bench)}, {bench.per_step} "
        f"rollouts a step, {bench.unroll.depths} depths, layout {bench.unroll.layout}; temperature "
        f"{bench.temperature:g}, K = {bench.unroll.deployed}, seeds {', '.join(map(str, bench.arms.seeds))}. "
        f"Acceptance rate = accepted / drafted tokens, expected along {bench.num_heldout} held-out rollouts. Mean over "
        "seeds, ± standard deviation where there are several; tasks count alike in `mean`; differences are within a "
        "seed, in points."
    )
    yield ""
    yield from main_table(bench, results)
    yield from rules_table(bench, results)
    yield from fresh_table(bench, results)
    yield from tuning_table(bench, results)
    yield from played_table(bench, results)


def told_steps(bench: ObjectiveBench) -> str:
    if bench.from_fresh:
        total = bench.start_steps + bench.steps
        return f"{total} steps of each objective from a fresh head, overlap losses after the warm-up"
    return f"{bench.start_steps} steps of kl from a fresh head, then {bench.steps} of each objective"


def main_table(bench: ObjectiveBench, results: Sequence[ArmResult]) -> Iterator[str]:
    tasks = tasks_of(results)
    rows = []
    for objective in bench.arms.objectives:
        mine = of_kind(results, "from_start", objective)
        if mine:
            over = [points(differences(mine, of_kind(results, "from_start", name))) for name in ("ce", "kl")]
            cells = [spread(mine, lambda one, task=task: one.rate("rejection", task)) for task in tasks]
            lr = next(iter(mine.values())).arm.lr
            rows.append([objective, f"{lr:g}", *cells, spread(mine, lambda one: one.mean_rate("rejection")), *over])
    yield from table("Rejection", ["objective", "lr", *tasks, "mean", "over ce", "over kl"], rows)


def rules_table(bench: ObjectiveBench, results: Sequence[ArmResult]) -> Iterator[str]:
    rows = []
    costs = {name: cost(of_kind(results, "from_start", name)) for name in bench.arms.objectives}
    for objective in bench.arms.objectives:
        mine = of_kind(results, "from_start", objective)
        if mine:
            cells = [spread(mine, lambda one, rule=rule: one.mean_rate(rule)) for rule in bench.rules]
            mine_s, base_s = costs[objective], costs.get("ce")
            ratio = f"{mine_s / base_s:.2f}" if mine_s and base_s else ""
            rows.append([objective, *cells, f"{mine_s:.2f}" if mine_s else "", ratio])
    yield from table("Every rule, mean over tasks; cost", ["objective", *bench.rules, "s per step", "over ce"], rows)


def fresh_table(bench: ObjectiveBench, results: Sequence[ArmResult]) -> Iterator[str]:
    rows = []
    warm_up, share = bench.warm_up, f"{bench.warm_up.until_share:.0%}"
    kinds: tuple[tuple[ArmKind, str], ...] = (
        ("from_start", "kl, then this"),
        ("fresh", f"warm-up by {warm_up.objective} to an overlap of {warm_up.until_overlap:g} or {share} of the steps"),
        ("fresh_without_warm_up", "none"),
    )
    for objective in bench.arms.fresh:
        for kind, told in kinds:
            mine = of_kind(results, kind, objective)
            if mine:
                over = points(differences(mine, of_kind(results, "from_start", objective)))
                cells = [spread(mine, lambda one, task=task: one.rate("rejection", task)) for task in tasks_of(results)]
                rows.append([objective, told, *cells, spread(mine, lambda one: one.mean_rate("rejection")), over])
    title = f"From a fresh head, {bench.start_steps + bench.steps} steps in all"
    yield from table(title, ["objective", "start", *tasks_of(results), "mean", "over kl first"], rows)


def tuning_table(bench: ObjectiveBench, results: Sequence[ArmResult]) -> Iterator[str]:
    rows = []
    for objective in bench.arms.objectives:
        mine = [one for one in results if one.arm.kind == "tuning" and one.arm.objective == objective]
        tried = sorted((one.arm.lr, one.mean_rate("rejection")) for one in mine)
        if tried:
            best = max(tried, key=lambda one: one[1])
            cells = ", ".join(f"{lr:g}: {rate:.2%}" for lr, rate in tried)
            at_edge = best in (tried[0], tried[-1])
            rows.append([objective, cells, f"{best[0]:g}", "yes" if at_edge else "no"])
    title = f"Learning rates, on {bench.num_tuning} rollouts set aside, seed {bench.arms.tuning_seed}"
    yield from table(title, ["objective", "rejection, mean over tasks", "taken", "at the grid's end"], rows)


def played_table(bench: ObjectiveBench, results: Sequence[ArmResult]) -> Iterator[str]:
    rows = []
    for objective in bench.arms.objectives:
        for one in of_kind(results, "from_start", objective).values():
            for task, figures in one.figures.items():
                played = [figures.get(f"{rule}/acceptance_rate") for rule in PLAYED_RULES]
                if all(played):
                    cells = [f"{rate.value:.2%} of {rate.count:.0f}" for rate in played if rate]
                    rows.append([objective, task, *cells, f"{one.rate('rejection', task):.2%}"])
    header = ["objective", "task", *(f"{rule}, played" for rule in PLAYED_RULES), "rejection, expected"]
    yield from table("Played by the engine, drafted tokens behind each figure", header, rows)


def tasks_of(results: Sequence[ArmResult]) -> list[str]:
    return list(results[0].figures)


def cost(mine: dict[int, ArmResult]) -> float | None:
    """Median processor seconds per step."""
    seconds = [one.seconds_per_step for one in mine.values() if one.seconds_per_step is not None]
    return statistics.median(seconds) if seconds else None


def spread(mine: dict[int, ArmResult], figure: Figure) -> str:
    values = [figure(one) for one in mine.values()]
    deviation = f" ± {statistics.stdev(values):.2%}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2%}{deviation}"


def points(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):+.2f}{deviation}"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A section, or nothing where there are no rows."""
    if rows:
        yield from (f"## {title}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header))
        yield from (f"| {' | '.join(row)} |" for row in rows)
        yield ""
