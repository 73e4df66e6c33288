"""How much faster drafting makes decoding, predicted from acceptance and the cost of a round (docs/math.md).

Speed-up with K drafts = accept length(K) x seconds of a round without drafts / seconds of a round with K. A batch's
rounds take longer the more tokens they verify, so the speed-up falls with the batch until K = 0 is best.

Shapes: K draft depths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bebop.errors import UserError

MIN_GAIN = 1.03
"""Less speed-up than this does not pay: noise and bookkeeping would eat it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """Chance that draft k survives given that the k - 1 before it did, for k = 1, 2 ...; the last one goes on."""

    conditional_K: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.conditional_K or not all(0 <= one <= 1 for one in self.conditional_K):
            raise UserError(f"acceptances are {list(self.conditional_K)}; give one or more chances between 0 and 1")

    def accept_length(self, num_drafts: int) -> float:
        """1 + sum_k prod_{i<=k} conditional_i; for equal chances a this is (1 - a^(K+1)) / (1 - a)."""
        length = survival = 1.0
        for depth in range(num_drafts):
            survival *= self.conditional_K[min(depth, len(self.conditional_K) - 1)]
            length += survival
        return length


class RoundCosts(Protocol):
    """What a draft-and-verify round takes, in seconds or in any one unit."""

    def seconds(self, batch: float, num_drafts: int) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearCosts:
    """Costs from two numbers, in units of the forward's fixed part: a forward over n tokens takes 1 + n token_cost, and
    a draft step ``draft_cost`` times a forward over one token per row. Right while the fixed part (reading the weights)
    dominates or the work per token does; a machine with a knee between them is worse than this near the knee."""

    token_cost: float
    draft_cost: float

    def __post_init__(self) -> None:
        if not (self.token_cost >= 0 and self.draft_cost >= 0):
            raise UserError(f"costs are {self.token_cost} and {self.draft_cost}; they must be 0 or more")

    def seconds(self, batch: float, num_drafts: int) -> float:
        verify = 1 + self.token_cost * batch * (num_drafts + 1)
        draft = self.draft_cost * (1 + self.token_cost * batch)
        return verify + num_drafts * draft


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredCosts:
    """Costs from a table batch -> drafts -> seconds, linear between what was measured.

    Beyond the largest batch the last two go on, or with one batch alone its costs grow in proportion; below the
    smallest, its costs stay.
    """

    table: Mapping[int, Mapping[int, float]]

    def __post_init__(self) -> None:
        for batch, row in self.table.items():
            if 0 not in row or len(row) < 2:
                raise UserError(f"batch {batch} was measured with {sorted(row)} drafts; measure 0 and one more length")
        if not self.table:
            raise UserError("no batch was measured; name one")

    def seconds(self, batch: float, num_drafts: int) -> float:
        costs = {one: line_through(row, num_drafts) for one, row in sorted(self.table.items())}
        smallest = min(costs)
        if batch <= smallest:
            return costs[smallest]
        if len(costs) == 1:
            return costs[smallest] * batch / smallest
        # Noise may make the last two fall; a larger batch is never cheaper than the largest measured one.
        floor = costs[max(costs)] if batch > max(costs) else 0.0
        return max(line_through(costs, batch), floor)


def line_through(points: Mapping[int, float], x: float) -> float:
    """Linear between points; outside, the nearest two go on."""
    places = sorted(points)
    right = next((at for at, place in enumerate(places) if place >= x), len(places) - 1)
    left, right = (places[max(1, right) - 1], places[max(1, right)])
    share = (x - left) / (right - left)
    return points[left] + share * (points[right] - points[left])


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """What is expected of one batch size; index k of a tuple is k drafts."""

    batch: int
    accept_lengths: tuple[float, ...]
    round_seconds: tuple[float, ...]
    speed_ups: tuple[float, ...]
    """Of decoding, against no drafts."""

    @property
    def best(self) -> int:
        """The draft length to use: the fastest, or 0 where none pays."""
        fastest = max(range(1, len(self.speed_ups)), key=self.speed_ups.__getitem__)
        return fastest if self.speed_ups[fastest] >= MIN_GAIN else 0

    @property
    def best_draft_speed_up(self) -> float:
        """With the fastest draft length above 0, whether it pays or not."""
        return max(self.speed_ups[1:])


def plan_batch(costs: RoundCosts, acceptance: Acceptance, batch: int, max_drafts: int) -> BatchPlan:
    """Every draft length up to ``max_drafts`` at one batch size."""
    if batch < 1 or max_drafts < 1:
        raise UserError(f"batch is {batch} and the most drafts are {max_drafts}; both must be 1 or more")
    lengths = tuple(acceptance.accept_length(k) for k in range(max_drafts + 1))
    seconds = tuple(costs.seconds(batch, k) for k in range(max_drafts + 1))
    speeds = tuple(length * seconds[0] / own for length, own in zip(lengths, seconds, strict=True))
    return BatchPlan(batch=batch, accept_lengths=lengths, round_seconds=seconds, speed_ups=speeds)


def break_even_batch(speed_up: Callable[[int], float], largest: int) -> int | None:
    """The smallest batch up to ``largest`` from which on drafting does not pay; None where it pays at ``largest``.

    ``speed_up`` of a batch falls with it but for noise, so the edge is found by halving.
    """
    if speed_up(largest) >= MIN_GAIN:
        return None
    pays, fails = 0, largest
    while fails - pays > 1:
        middle = (pays + fails) // 2
        pays, fails = (middle, fails) if speed_up(middle) >= MIN_GAIN else (pays, middle)
    return fails


def with_prefill(decoding_speed_up: float, prefill_share: float) -> float:
    """Speed-up of generation whose prefill, a share of its time without drafts, is not made faster."""
    return 1 / (prefill_share + (1 - prefill_share) / decoding_speed_up)


def conditional_of(survivals: Sequence[float]) -> tuple[float, ...]:
    """Chances given the depths before, from the chances that all drafts up to each depth survive."""
    before = (1.0, *survivals)
    return tuple(
        min(1.0, now / last) if last > 0 and math.isfinite(now) else 0.0
        for last, now in zip(before, survivals, strict=False)
    )
