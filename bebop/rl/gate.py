"""The gate that bounds how stale a token can be when it is learned from.

Groups are numbered in the order of the data, and every step learns from the next P that teach something, in that order.
A group that teaches nothing may be replaced: then it counts no more, and the one after the last takes its place. At
version v at most (v + max_lag + 1)P groups that count have ever been let through. So when one is let through it is
among the first (max_lag + 1)P of those that are yet to be learned from, and later ones never overtake it: step
v + max_lag learns from it at the latest. Its tokens are sampled from then on, so no token is ever older than max_lag
updates, and nothing has to be thrown away for its age. The (max_lag + 1)P groups are the slots of the buffer. With
max_lag 0 the groups of a step are let through when the step before is published: synchronous.
"""

from __future__ import annotations

from collections import deque


class LagGate:
    """Hands out the numbers of the groups that may be started, and of those that are next to be learned from."""

    def __init__(
        self,
        *,
        max_lag: int,
        groups_per_step: int,
        num_steps: int,
        version: int = 0,
        position: int | None = None,
        max_replaced: int = 0,
    ) -> None:
        """``version`` updates are published already, from groups before ``position``; None: nothing was replaced.
        ``max_replaced``: groups that may be replaced for one step.
        """
        assert max_lag >= 0 and groups_per_step >= 1
        self._max_lag = max_lag
        self._groups_per_step = groups_per_step
        self._num_groups = num_steps * groups_per_step
        self._max_replaced = max_replaced
        self._next = version * groups_per_step if position is None else position
        self._num_counting = version * groups_per_step
        """Groups let through so far that count."""
        self._settled = self._next
        """All groups before this one are settled."""
        self._kept: deque[int] = deque()
        self._num_replaced = 0
        self.position = self._next
        """The group after the last one that was learned from: where a resumed run starts."""

    @property
    def num_slots(self) -> int:
        """Groups that count and are under way at most: started, and not yet learned from."""
        return (self._max_lag + 1) * self._groups_per_step

    @property
    def unsettled(self) -> range:
        """The groups that are let through and not settled."""
        return range(self._settled, self._next)

    def admit(self, version: int) -> range:
        """The groups that may be started now that ``version`` updates are published, each handed out once."""
        bound = min(version * self._groups_per_step + self.num_slots, self._num_groups)
        admitted = range(self._next, self._next + max(0, bound - self._num_counting))
        self._num_counting += len(admitted)
        self._next = admitted.stop
        return admitted

    def settle(self, *, teaches: bool) -> bool:
        """The first unsettled group has finished; whether it is to be learned from (or else is replaced)."""
        is_kept = teaches or self._num_replaced >= self._max_replaced
        if is_kept:
            self._kept.append(self._settled)
        else:
            self._num_replaced += 1
            self._num_counting -= 1
        self._settled += 1
        return is_kept

    def take(self) -> tuple[int, ...] | None:
        """The groups that the next step learns from; None while too few are settled."""
        if len(self._kept) < self._groups_per_step:
            return None
        taken = tuple(self._kept.popleft() for _ in range(self._groups_per_step))
        self._num_replaced = 0
        self.position = taken[-1] + 1
        return taken
