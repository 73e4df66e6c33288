"""The gate that bounds how stale a token can be when it is learned from.

Groups are numbered in the order of the data, and step s learns from groups sP to (s + 1)P - 1, P groups a step,
whichever finish first. A group of step s is let through once s - max_lag updates are published. The tokens of its
episodes are sampled from then on, so their versions are at least s - max_lag: no token is ever older than max_lag
updates, and nothing has to be thrown away. At most (max_lag + 1)P groups are under way at a time: these are the slots
of the buffer. With max_lag 0 the groups of a step are let through when the step before is published: synchronous.
"""

from __future__ import annotations


class LagGate:
    """Hands out the numbers of the groups that may be started."""

    def __init__(self, *, max_lag: int, groups_per_step: int, num_steps: int, version: int = 0) -> None:
        """``version`` updates are published already, so the first group is the first one of step ``version``."""
        assert max_lag >= 0 and groups_per_step >= 1
        self._max_lag = max_lag
        self._groups_per_step = groups_per_step
        self._num_groups = num_steps * groups_per_step
        self._next = version * groups_per_step

    @property
    def num_slots(self) -> int:
        """Groups that are under way at most: started, and not yet learned from."""
        return (self._max_lag + 1) * self._groups_per_step

    def admit(self, version: int) -> range:
        """The groups that may be started now that ``version`` updates are published, each handed out once."""
        bound = min(version * self._groups_per_step + self.num_slots, self._num_groups)
        admitted = range(self._next, max(self._next, bound))
        self._next = admitted.stop
        return admitted

    def groups_of(self, step: int) -> range:
        """The groups that step ``step`` (from 0) learns from."""
        return range(step * self._groups_per_step, (step + 1) * self._groups_per_step)
