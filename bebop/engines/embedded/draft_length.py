"""Choosing the draft length of each round from measured costs and running acceptance.

Lossless by construction: the choice is made before the round draws anything, from past rounds alone.
"""

from collections.abc import Sequence

_WARMUP_ROUNDS = 3
"""Rounds each of the lengths 0, middle and maximum is measured for before a batch size has a cost table."""
_PROBE_EVERY = 32
"""One round in so many runs a neighbouring length, so that costs and acceptance stay current."""
_FORGET = 0.98
"""Weight of the past in the acceptance counts, per round."""
_PRIOR = 8.0
"""Drafts that a depth is believed to do as well as the one before it; decides where a depth was not tried lately."""
_COST_STEP = 0.15
"""Weight of the newest measurement of a cost."""
_MIN_GAIN = 1.03
"""A length replaces the one in use only for this much more speed: below it, noise would decide."""


class CostTable:
    """Seconds per round by batch size (rounded up to a power of two) and draft length."""

    def __init__(self) -> None:
        self._seconds: dict[int, dict[int, float]] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def observe(self, num_rows: int, num_drafts: int, seconds: float) -> None:
        """Take in the duration of a round."""
        bucket = _bucket(num_rows)
        row = self._seconds.setdefault(bucket, {})
        self._counts[bucket, num_drafts] = self._counts.get((bucket, num_drafts), 0) + 1
        old = row.get(num_drafts)
        row[num_drafts] = seconds if old is None else _moved(old, seconds)

    def count(self, num_rows: int, num_drafts: int) -> int:
        """How many rounds were measured."""
        return self._counts.get((_bucket(num_rows), num_drafts), 0)

    def predict(self, num_rows: int, num_drafts: int) -> float:
        """Seconds of a round, linear between the measured lengths of this batch size; needs 0 and one more measured."""
        row = self._seconds[_bucket(num_rows)]
        if num_drafts in row:
            return row[num_drafts]
        below = max((k for k in row if k < num_drafts), default=min(row))
        above = min((k for k in row if k > num_drafts), default=max(row))
        if below == above:
            return row[below]
        share = (num_drafts - below) / (above - below)
        return row[below] + share * (row[above] - row[below])

    def as_dict(self) -> dict[int, dict[int, float]]:
        """{batch size: {draft length: seconds}}."""
        return {bucket: dict(sorted(row.items())) for bucket, row in sorted(self._seconds.items())}


class AutoDraftLength:
    """The draft length with the most expected tokens per second."""

    def __init__(self, max_drafts: int) -> None:
        self.costs = CostTable()
        self._max_drafts = max_drafts
        self._arms = sorted({0, (max_drafts + 1) // 2, max_drafts})
        self._reached = [0.0] * max_drafts
        self._accepted = [0.0] * max_drafts
        self._current: dict[int, int] = {}
        self._num_rounds = 0

    def choose(self, num_rows: int) -> int:
        """Draft length of the next round for a batch of ``num_rows``."""
        self._num_rounds += 1
        counts = {arm: self.costs.count(num_rows, arm) for arm in self._arms}
        least = min(self._arms, key=lambda arm: counts[arm])
        if counts[least] < _WARMUP_ROUNDS:
            return least
        best = self._best(num_rows)
        if self._num_rounds % _PROBE_EVERY == 0:
            up = self._num_rounds // _PROBE_EVERY % 2 == 0 or best == 0
            return min(best + 1, self._max_drafts) if up else best - 1
        return best

    def observe(self, num_rows: int, num_drafts: int, seconds: float, accepted: Sequence[int]) -> None:
        """Take in a round: its duration, and how many of its ``num_drafts`` drafts each row accepted."""
        self.costs.observe(num_rows, num_drafts, seconds)
        for depth in range(self._max_drafts):
            self._reached[depth] *= _FORGET
            self._accepted[depth] *= _FORGET
            if depth < num_drafts:
                self._reached[depth] += sum(count >= depth for count in accepted)
                self._accepted[depth] += sum(count > depth for count in accepted)

    def expected_tokens(self, num_drafts: int) -> float:
        """1 plus the survival of each depth, from the running conditional acceptances."""
        total, survival, rate = 1.0, 1.0, 0.5
        for depth in range(num_drafts):
            rate = (self._accepted[depth] + _PRIOR * rate) / (self._reached[depth] + _PRIOR)
            survival *= rate
            total += survival
        return total

    def _best(self, num_rows: int) -> int:
        speeds = [self.expected_tokens(k) / self.costs.predict(num_rows, k) for k in range(self._max_drafts + 1)]
        best = max(range(len(speeds)), key=speeds.__getitem__)
        bucket = _bucket(num_rows)
        current = self._current.setdefault(bucket, best)
        if speeds[best] > _MIN_GAIN * speeds[current]:
            self._current[bucket] = best
        return self._current[bucket]


def _bucket(num_rows: int) -> int:
    return 1 << (num_rows - 1).bit_length()


def _moved(old: float, seconds: float) -> float:
    """The estimate after one more measurement. Delays from outside only ever add: a faster round moves it further than
    a slower one, and an interrupted round counts as twice the estimate at most."""
    step = 2 * _COST_STEP if seconds < old else _COST_STEP
    return old + step * (min(seconds, 2 * old) - old)
