"""The formulas of spec section 7, and what follows from them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bebop.errors import UserError
from bebop.plan.decoding import (
    MIN_GAIN,
    Acceptance,
    LinearCosts,
    MeasuredCosts,
    break_even_batch,
    conditional_of,
    plan_batch,
    with_prefill,
)
from bebop.plan.plan import Known, Question, StepFacts, make_plan
from bebop.plan.steps import LoggedStep, asynchronous, synchronous
from bebop.report.analysis_time import break_even_steps

chances = st.floats(0.01, 0.99)
shares = st.floats(0.01, 0.99)
speeds = st.floats(1.0, 5.0)


@given(chances, st.integers(0, 16))
def test_equal_chances_give_the_geometric_sum(chance: float, num_drafts: int) -> None:
    length = Acceptance(conditional_K=(chance,)).accept_length(num_drafts)
    assert length == pytest.approx((1 - chance ** (num_drafts + 1)) / (1 - chance))


def test_chances_by_depth() -> None:
    acceptance = Acceptance(conditional_K=(0.9, 0.5))
    assert [acceptance.accept_length(k) for k in range(4)] == pytest.approx([1, 1.9, 2.35, 2.575])
    assert conditional_of([0.9, 0.45, 0.225]) == pytest.approx((0.9, 0.5, 0.5))
    assert conditional_of([0.5, 0.0, 0.0]) == (0.5, 0.0, 0.0)
    for wrong in ((), (1.2,), (math.nan,)):
        with pytest.raises(UserError, match="between 0 and 1"):
            Acceptance(conditional_K=wrong)


def test_the_speed_up_of_leviathan() -> None:
    """Fixed-cost forwards: (1 - a^(K+1)) / ((1 - a) (K c + 1)), arXiv 2211.17192."""
    plan = plan_batch(LinearCosts(token_cost=0.0, draft_cost=0.1), Acceptance(conditional_K=(0.8,)), 7, 5)
    assert plan.speed_ups[3] == pytest.approx((1 - 0.8**4) / (0.2 * 1.3))
    assert plan.speed_ups[0] == 1


@given(chances, st.floats(0.001, 0.2), st.floats(0.0, 0.5))
def test_a_larger_batch_never_gains_more(chance: float, token_cost: float, draft_cost: float) -> None:
    costs, acceptance = LinearCosts(token_cost=token_cost, draft_cost=draft_cost), Acceptance(conditional_K=(chance,))
    speeds = [plan_batch(costs, acceptance, batch, 5).best_draft_speed_up for batch in (1, 2, 8, 64, 1024)]
    assert all(after <= before + 1e-9 for before, after in pairwise(speeds))


@given(chances, st.floats(0.001, 0.2))
def test_the_batch_where_it_stops_paying_is_the_first_one(chance: float, token_cost: float) -> None:
    costs, acceptance = LinearCosts(token_cost=token_cost, draft_cost=0.1), Acceptance(conditional_K=(chance,))

    def speed_up(batch: int) -> float:
        return plan_batch(costs, acceptance, batch, 5).best_draft_speed_up

    edge = break_even_batch(speed_up, 4096)
    if edge is None:
        assert speed_up(4096) >= MIN_GAIN
    else:
        assert speed_up(edge) < MIN_GAIN
        assert edge == 1 or speed_up(edge - 1) >= MIN_GAIN


def test_measured_costs_are_met_and_joined_by_lines() -> None:
    costs = MeasuredCosts(table={2: {0: 1.0, 2: 2.0, 4: 5.0}, 6: {0: 3.0, 2: 4.0, 4: 9.0}})
    assert costs.seconds(2, 2) == 2.0 and costs.seconds(6, 4) == 9.0
    assert costs.seconds(2, 3) == 3.5  # between two lengths
    assert costs.seconds(4, 2) == 3.0  # between two batches
    assert costs.seconds(1, 2) == 2.0  # a smaller batch costs as much
    assert costs.seconds(8, 0) == 4.0  # a larger one goes on
    assert costs.seconds(2, 5) == 6.5
    falling = MeasuredCosts(table={2: {0: 3.0, 1: 3.0}, 4: {0: 2.0, 1: 2.0}})
    assert falling.seconds(16, 0) == 2.0
    alone = MeasuredCosts(table={4: {0: 1.0, 3: 2.0}})
    assert (alone.seconds(2, 0), alone.seconds(8, 0)) == (1.0, 2.0)
    with pytest.raises(UserError, match="measure 0 and one more"):
        MeasuredCosts(table={4: {3: 1.0}})


@given(shares, speeds)
def test_steps(share: float, speed: float) -> None:
    assert 1 <= synchronous(share, speed) <= 1 / (1 - share) + 1e-9
    assert 1 - 1e-9 <= asynchronous(share, speed) <= speed + 1e-9
    learning = 1 - share
    if share <= learning:
        assert asynchronous(share, speed) == 1  # nothing is exposed
    elif share / speed >= learning:
        assert asynchronous(share, speed) == pytest.approx(speed)


def test_steps_by_hand() -> None:
    assert synchronous(0.7, 2.0) == pytest.approx(1 / 0.65)
    assert asynchronous(0.7, 4.0) == pytest.approx(0.7 / 0.3)
    assert with_prefill(2.0, 0.0) == 2.0 and with_prefill(2.0, 1.0) == 1.0
    assert break_even_steps(100.0, 10.0, 2.0) == 20.0
    assert break_even_steps(100.0, 10.0, 1.0) == math.inf
    with pytest.raises(UserError, match="between 0 and 1"):
        synchronous(70, 2.0)


@given(st.floats(0.1, 10), st.floats(0.1, 10), speeds)
def test_a_logged_step_obeys_both_ideals(generation: float, learning: float, speed: float) -> None:
    taking_turns = LoggedStep(step=generation + learning, exposed=generation, generation=generation)
    share = generation / (generation + learning)
    assert taking_turns.step / taking_turns.with_speed_up(speed) == pytest.approx(synchronous(share, speed))
    assert taking_turns.synchronous_share == pytest.approx(share)
    longer = max(generation, learning)
    beside = LoggedStep(step=longer, exposed=longer - learning, generation=generation)
    assert beside.step / beside.with_speed_up(speed) == pytest.approx(asynchronous(share, speed))


def ask(acceptance: float, batch: int, facts: StepFacts | None = None, token_cost: float = 0.01) -> Question:
    known = Known(
        acceptance=Acceptance(conditional_K=(acceptance,)),
        costs=LinearCosts(token_cost=token_cost, draft_cost=0.1),
        origin="given numbers",
    )
    return Question(known=known, batches=(1, batch), rollout_batch=batch, step=facts or StepFacts())


def test_it_says_use_it() -> None:
    plan = make_plan(ask(0.85, 16, StepFacts(generation_share=0.7, seconds=60.0, head_seconds=600.0, num_steps=100)))
    assert plan.pays and plan.verdict.startswith(
        "Use it: K = 4 at batch 16 decodes 1.90 times as fast and makes synchr"
    )
    assert plan.head is not None and plan.head.break_even_steps is not None
    assert plan.step is not None and plan.step.speed_up == plan.step.synchronous < plan.step.asynchronous
    assert plan.head.break_even_steps == pytest.approx(600 / (60 * (1 - 1 / plan.step.speed_up)))


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (ask(0.85, 256), "at batch 256 the best draft length decodes 1.02 times as fast as none; below batch 230"),
        (ask(0.05, 1), "at batch 1 the best draft length decodes 0.9"),
        (ask(0.9, 16, StepFacts(generation_share=0.02)), "but steps gain 1.01 times: they spend their time elsewhere"),
        (
            ask(0.9, 16, StepFacts(generation_share=0.7, seconds=10.0, head_seconds=36000.0, num_steps=100)),
            "won back after 9655 steps and the run has 100",
        ),
    ],
)
def test_it_says_do_not_use_it(question: Question, reason: str) -> None:
    plan = make_plan(question)
    assert not plan.pays
    assert plan.verdict.startswith("Do not") and reason in plan.verdict
