"""Groups come to the learner in the order of the data, without those that teach nothing; a run can be called off."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from bebop.rl.fleet import Interrupted
from bebop.rl.gate import LagGate
from bebop.rl.intake import Intake, IntakeOptions
from bebop.rl.jobs import Job


class PlayedAtOnce:
    """A fleet whose groups are finished when they are issued; those with a number that 3 divides teach nothing."""

    def __init__(self) -> None:
        self.issued: list[list[int]] = []
        self.num_heard: int | None = None
        """Groups that are known to have finished; None: all."""

    def issue(self, jobs: Sequence[Job]) -> None:
        self.issued.append([job.number for job in jobs])

    def wait(self, ids: Sequence[str], is_called_off: Callable[[], bool]) -> None:
        if is_called_off():
            raise Interrupted
        self.hear()

    def hear(self) -> None:
        self.num_heard = sum(map(len, self.issued))

    def is_done(self, id: str) -> bool:
        return self.num_heard is None or int(id.removeprefix("group/")) < self.num_heard

    def gather(self, ids: Sequence[str]):
        numbers = [int(one.removeprefix("group/")) for one in ids]
        return [tuple(rollout(float(number % 3 > 0 and place)) for place in range(2)) for number in numbers]


def rollout(reward: float):
    return SimpleNamespace(outcome=SimpleNamespace(reward=reward))


def opened(*, max_lag: int) -> tuple[Intake, PlayedAtOnce]:
    gate = LagGate(max_lag=max_lag, groups_per_step=2, num_steps=3, max_replaced=9)
    options = IntakeOptions(turns=("math",), group_size=2, seed=0, in_waves=max_lag == 0)
    fleet = PlayedAtOnce()
    return Intake(gate, fleet, options), fleet  # type: ignore[arg-type]


@pytest.mark.parametrize("max_lag", [0, 1])
def test_steps_learn_from_the_groups_that_teach_in_the_order_of_the_data(max_lag):
    intake, fleet = opened(max_lag=max_lag)
    learned, replaced = [], []
    for step in range(3):
        intake.issue(step)
        groups = intake.gather(step)
        learned += [one.number for one in groups.learned]
        replaced += [one.number for one in groups.replaced]
        assert len(groups.rollouts) == 2 * (len(groups.learned) + len(groups.replaced))
    assert learned == [1, 2, 4, 5, 7, 8]
    assert replaced == [0, 3, 6]
    assert [number for some in fleet.issued for number in some] == list(range(9))
    assert intake.position == 9


def test_what_replaces_a_group_starts_as_soon_as_it_is_known_to_have_finished():
    intake, fleet = opened(max_lag=1)
    fleet.num_heard = 0
    intake.issue(0)
    assert fleet.issued == [[0, 1, 2, 3]]
    intake.issue(0)
    assert fleet.issued[-1] == [4, 5], "groups 0 and 3 teach nothing"
    intake.issue(0)
    assert fleet.issued[-1] == []


def test_synchronous_replaces_in_waves():
    intake, fleet = opened(max_lag=0)
    intake.issue(0)
    intake.gather(0)
    assert [one for one in fleet.issued if one] == [[0, 1], [2]]


def test_a_learner_that_never_has_to_wait_can_be_called_off():
    intake, _ = opened(max_lag=1)
    intake.issue(0)
    intake.issue(0)
    with pytest.raises(Interrupted):
        intake.gather(0, lambda: True)
