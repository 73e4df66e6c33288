"""No token is older than max_lag updates when it is learned from, whatever workers do; every group is played once.

Groups that teach nothing are replaced, to the same bound.
"""

import random
from dataclasses import dataclass, field

import pytest

from bebop.rl.gate import LagGate


class Workers:
    """Groups under way. Each token takes the newest version that its worker happens to have loaded."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.versions: dict[int, list[int]] = {}
        self.missing: dict[int, int] = {}

    def start(self, group: int) -> None:
        self.versions[group] = []
        self.missing[group] = self.rng.randint(1, 30)

    def sample(self, version: int) -> None:
        """One token of any group that is under way; some groups are slower than others by far."""
        waiting = [group for group, missing in self.missing.items() if missing]
        if waiting:
            group = self.rng.choices(waiting, weights=[1 + 50 * (one % 7 == 0) for one in waiting])[0]
            self.versions[group].append(version)
            self.missing[group] -= 1


@dataclass
class Played:
    """What became of a run of random speed."""

    lags: list[int] = field(default_factory=list)
    """Of every token that was learned from."""
    started: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    most: int = 0
    """Groups under way and not replaced."""


NUM_STEPS = 12


def play(max_lag: int, groups_per_step: int, seed: int, max_replaced: int = 0) -> Played:
    rng = random.Random(seed)
    gate = LagGate(max_lag=max_lag, groups_per_step=groups_per_step, num_steps=NUM_STEPS, max_replaced=max_replaced)
    workers, played = Workers(rng), Played()

    def start(version: int) -> None:
        for group in gate.admit(version):
            workers.start(group)
            played.started.append(group)
        played.most = max(played.most, len(played.started) - len(played.learned) - len(played.replaced))

    def settle() -> None:
        while gate.unsettled and not workers.missing[gate.unsettled[0]]:
            group = gate.unsettled[0]
            if not gate.settle(teaches=group % 3 > 0):
                played.replaced.append(group)

    for step in range(NUM_STEPS):
        settle()
        start(step)
        while (groups := gate.take()) is None:
            assert gate.unsettled, "nothing is under way, and the step has too few groups"
            workers.sample(step)
            settle()
            start(step)
        for _ in range(rng.randint(0, 40)):  # sampling goes on while the learner is busy
            workers.sample(step)
        played.lags += [step - version for group in groups for version in workers.versions[group]]
        played.learned += groups
    return played


@pytest.mark.parametrize("max_replaced", [0, 2, 100])
@pytest.mark.parametrize("max_lag", [0, 1, 2, 5])
@pytest.mark.parametrize("groups_per_step", [1, 3, 8])
def test_lag_never_exceeds_its_bound_and_reaches_it(max_lag, groups_per_step, max_replaced):
    seen = set()
    for seed in range(20):
        played = play(max_lag, groups_per_step, seed, max_replaced)
        assert min(played.lags) >= 0 and max(played.lags) <= max_lag
        assert played.started == list(range(len(played.started)))
        assert sorted(played.learned + played.replaced) == played.started
        assert len(played.learned) == NUM_STEPS * groups_per_step
        assert played.most <= (max_lag + 1) * groups_per_step
        seen.update(played.lags)
    assert seen == set(range(max_lag + 1))


def test_groups_that_teach_nothing_are_replaced_as_often_as_allowed():
    assert play(1, 4, seed=0).replaced == []
    assert NUM_STEPS / 2 < len(play(1, 4, seed=0, max_replaced=1).replaced) <= NUM_STEPS + 1
    everything = play(1, 4, seed=0, max_replaced=100)
    assert everything.learned == [group for group in everything.started if group % 3]


def test_synchronous_lets_through_one_step_at_a_time():
    gate = LagGate(max_lag=0, groups_per_step=4, num_steps=3)
    assert [gate.admit(version) for version in range(4)] == [range(4), range(4, 8), range(8, 12), range(12, 12)]


def test_the_gate_of_a_resumed_run_goes_on_where_the_checkpoint_stands():
    gate = LagGate(max_lag=1, groups_per_step=4, num_steps=10, version=6)
    assert gate.admit(6) == range(24, 32)
    assert gate.admit(6) == range(32, 32)
    assert gate.admit(7) == range(32, 36)


def test_a_run_that_replaced_groups_goes_on_after_the_last_one_it_learned_from():
    gate = LagGate(max_lag=1, groups_per_step=2, num_steps=10, max_replaced=5)
    gate.admit(0)
    for teaches in (False, True, False, True):
        gate.settle(teaches=teaches)
    assert gate.admit(0) == range(4, 6)
    assert gate.take() == (1, 3)
    assert gate.position == 4
    resumed = LagGate(max_lag=1, groups_per_step=2, num_steps=10, max_replaced=5, version=1, position=gate.position)
    assert resumed.admit(1) == range(4, 8)
