"""One draft temperature per depth, the cheap rival of an overlap loss: chosen on one half of the episodes, told of
the other.

Shapes: N chains, K depths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bebop.runs import Mean
from bebop.training.bootstrap import Tally
from bebop.training.mtp_eval import RolloutChains, mean_of, promised
from bebop.training.teacher_forced import Odds

TEMPERATURES = tuple(math.exp(step * 0.05) for step in range(-12, 7))
"""From 0.55 to 1.35 in steps of five per cent; 1 is among them."""


def calibrated(chains: Sequence[RolloutChains]) -> tuple[list[float], list[Tally]]:
    """The temperature of each depth with the largest mean overlap on every other episode, and the others' tallies."""
    chosen = best_temperatures(chains[::2])
    return chosen, [calibrated_tally(one, chosen) for one in chains[1::2]]


def best_temperatures(chains: Sequence[RolloutChains]) -> list[float]:
    num_depths = chains[0].figures.overlap_NK.shape[1]

    def overlap_at(temperature: float, depth: int) -> float:
        parts = [one.figures.at_temperature[temperature].acceptance_NK[one.is_whole_N, depth] for one in chains]
        return sum(map(mean_of, parts), Mean()).value

    return [max(TEMPERATURES, key=lambda one: overlap_at(one, depth)) for depth in range(num_depths)]


def calibrated_tally(chains: RolloutChains, temperatures: Sequence[float]) -> Tally:
    """Rejection with the chosen temperatures, and without any on the same episodes, for comparison."""
    tuned = mixed_odds([chains.figures.at_temperature[one] for one in temperatures])
    plain = chains.figures.at_temperature[1.0]
    return {**promised("calibrated", tuned.fate, chains), **promised("uncalibrated", plain.fate, chains)}


def mixed_odds(at_depth: Sequence[Odds]) -> Odds:
    """Depth k taken from the k-th of ``at_depth``."""
    return Odds(
        acceptance_NK=torch.stack([odds.acceptance_NK[:, k] for k, odds in enumerate(at_depth)], -1),
        survival_NK=torch.stack([odds.survival_NK[:, k] for k, odds in enumerate(at_depth)], -1),
    )
