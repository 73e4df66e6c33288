"""Which objective trains the head best: from one start, on one data set, each at its own learning rate, over seeds.

``python -m bebop.bench.objectives CONFIG [KEY=VALUE]...``, for example ::

    python -m bebop.bench.objectives configs/objectives-tiny.yaml arms.seeds=[1,2,3]

1. The policy plays the tasks: train rollouts, some of them set aside for tuning, and held-out ones. Hidden states are
   computed once and kept in memory.
2. A fresh head is trained with ``kl`` for a while, once per seed: the common start.
3. Every objective goes on from the tuning seed's start at every learning rate; while the best one is the smallest or
   the largest of the grid, the grid grows. The one with the highest acceptance on the tuning rollouts is taken.
4. Every objective goes on from every seed's start at that rate; acceptance is estimated on the held-out rollouts for
   every rule (docs/math.md), and, if asked for, played by the engine.
5. For comparison, the same number of steps in all from a fresh head, with the warm-up that `bebop train-mtp` has.

With ``from_fresh`` steps 3 and 4 compare whole trainings instead, all from the seed's fresh head, and 5 falls away.

Every arm is kept under ``out``: interrupted, or with more objectives or seeds, the same command goes on.
``results.json`` and ``results.md`` are written anew after every arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bebop.bench.objective_arms import Arm, ArmResult, run_arm
from bebop.bench.objective_config import ObjectiveBench
from bebop.bench.objective_lab import Lab, open_lab
from bebop.bench.objective_table import write_results
from bebop.config import load_config
from bebop.errors import run_as_program
from bebop.training.allocator import prepare_memory_for_training

MAX_GROWTH = 2
"""Learning rates that a grid may gain at its ends."""


def main(words: Sequence[str]) -> None:
    """``[CONFIG] [KEY=VALUE]...``"""
    path = Path(words[0]) if words and "=" not in words[0] else None
    bench = load_config(ObjectiveBench, path, words[1:] if path else words)
    prepare_memory_for_training()
    lab = open_lab(bench, ["python", "-m", "bebop.bench.objectives", *words])
    results: list[ArmResult] = []
    for result in measured(lab):
        results.append(result)
        write_results(bench, results, lab.run)
    print(f"{lab.run.path / 'results.md'} and results.json hold the figures")


def measured(lab: Lab) -> Iterator[ArmResult]:
    """The results of all arms, as they are there."""
    arms = lab.bench.arms
    rates: dict[str, float] = {}
    for objective in arms.objectives:
        tuned = []
        for result in tuning(lab, objective):
            tuned.append(result)
            yield result
        rates[objective] = best_rate(tuned) if tuned else arms.lrs[0]
    for seed in arms.seeds:
        for objective in arms.objectives:
            yield run_arm(lab, Arm(kind="from_start", objective=objective, lr=rates[objective], seed=seed))
        for objective in () if lab.bench.from_fresh else arms.fresh:
            for kind in ("fresh", "fresh_without_warm_up") if arms.without_warm_up else ("fresh",):
                yield run_arm(lab, Arm(kind=kind, objective=objective, lr=rates[objective], seed=seed))


def tuning(lab: Lab, objective: str) -> Iterator[ArmResult]:
    """One arm for every learning rate; none where there is nothing to choose."""
    arms = lab.bench.arms
    grid = sorted(arms.lrs)
    if len(grid) == 1:
        return
    results: list[ArmResult] = []
    waiting = list(grid)
    while waiting:
        arm = Arm(kind="tuning", objective=objective, lr=waiting.pop(0), seed=arms.tuning_seed)
        results.append(run_arm(lab, arm))
        yield results[-1]
        if not waiting and len(results) < len(grid) + MAX_GROWTH:
            waiting = wider(best_rate(results), [one.arm.lr for one in results])


def wider(best: float, rates: Sequence[float]) -> list[float]:
    """A learning rate beyond the end that ``best`` is at, as far away as the one before it; none inside the grid."""
    ordered = sorted(rates)
    if best == ordered[-1]:
        return [float(f"{best * best / ordered[-2]:.3g}")]
    return [float(f"{best * best / ordered[1]:.3g}")] if best == ordered[0] else []


def best_rate(results: Sequence[ArmResult]) -> float:
    return max(results, key=lambda one: one.mean_rate("rejection")).arm.lr


if __name__ == "__main__":
    run_as_program(main)
