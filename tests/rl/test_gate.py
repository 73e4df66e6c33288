"""No token is older than max_lag updates when it is learned from, whatever workers do; every group is played once."""

import random

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

    def have_finished(self, groups: range) -> bool:
        return all(not self.missing[group] for group in groups)


def play(max_lag: int, groups_per_step: int, num_steps: int, seed: int) -> tuple[list[int], list[int], int]:
    """A run of random speed: (lags of all tokens, groups in the order they were started, most groups under way)."""
    rng = random.Random(seed)
    gate = LagGate(max_lag=max_lag, groups_per_step=groups_per_step, num_steps=num_steps)
    workers, started, lags, most = Workers(rng), [], [], 0
    for step in range(num_steps):
        for group in gate.admit(step):
            workers.start(group)
            started.append(group)
        most = max(most, len(started) - step * groups_per_step)
        while not workers.have_finished(gate.groups_of(step)):
            workers.sample(step)
        for _ in range(rng.randint(0, 40)):  # sampling goes on while the learner is busy
            workers.sample(step)
        lags += [step - version for group in gate.groups_of(step) for version in workers.versions[group]]
    return lags, started, most


@pytest.mark.parametrize("max_lag", [0, 1, 2, 5])
@pytest.mark.parametrize("groups_per_step", [1, 3, 8])
def test_lag_never_exceeds_its_bound_and_reaches_it(max_lag, groups_per_step):
    seen = set()
    for seed in range(20):
        lags, started, most = play(max_lag, groups_per_step, num_steps=12, seed=seed)
        assert min(lags) >= 0 and max(lags) <= max_lag
        assert started == list(range(12 * groups_per_step))
        assert most <= (max_lag + 1) * groups_per_step
        seen.update(lags)
    assert seen == set(range(max_lag + 1))


def test_synchronous_lets_through_one_step_at_a_time():
    gate = LagGate(max_lag=0, groups_per_step=4, num_steps=3)
    assert [gate.admit(version) for version in range(4)] == [range(4), range(4, 8), range(8, 12), range(12, 12)]


def test_the_gate_of_a_resumed_run_goes_on_where_the_checkpoint_stands():
    gate = LagGate(max_lag=1, groups_per_step=4, num_steps=10, version=6)
    assert gate.admit(6) == range(24, 32)
    assert gate.admit(6) == range(32, 32)
    assert gate.admit(7) == range(32, 36)
