"""The automatic draft length: it finds the fastest K of a known cost model and changes no law."""

from statistics import median

import pytest
from small_policies import GREEDY, greedy_reference, random_prompts, run, small_policy

from bebop.core.sampling import Sampling
from bebop.engines.base import Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.embedded.draft_length import AutoDraftLength, CostTable

ROWS = 8


def drive(auto: AutoDraftLength, num_rounds: int, rate: float, seconds_per_draft: float) -> list[int]:
    """Rounds of constant acceptance and linear cost; returns the choices."""
    choices, coin = [], 0.0
    for _ in range(num_rounds):
        num_drafts = auto.choose(ROWS)
        accepted = []
        for _ in range(ROWS):
            count = 0
            for _ in range(num_drafts):
                coin = (coin + 0.6180339887) % 1.0
                if coin >= rate:
                    break
                count += 1
            accepted.append(count)
        auto.observe(ROWS, num_drafts, 1.0 + seconds_per_draft * num_drafts, accepted)
        choices.append(num_drafts)
    return choices


@pytest.mark.parametrize(
    ("rate", "seconds_per_draft", "best"), [(0.95, 0.05, {5}), (0.1, 0.5, {0}), (0.7, 0.25, {2, 3}), (0.6, 1.0, {0})]
)
def test_the_fastest_length_is_found(rate: float, seconds_per_draft: float, best: set[int]) -> None:
    choices = drive(AutoDraftLength(5), 400, rate, seconds_per_draft)
    assert sum(choice in best for choice in choices[100:]) > 0.9 * 300


def test_it_follows_a_change_of_acceptance() -> None:
    auto = AutoDraftLength(5)
    drive(auto, 300, 0.95, 0.1)
    assert median(drive(auto, 600, 0.05, 0.1)[-60:]) == 0
    assert median(drive(auto, 600, 0.95, 0.1)[-60:]) == 5


def test_an_interrupted_round_does_not_change_the_choice() -> None:
    auto = AutoDraftLength(5)
    drive(auto, 200, 0.95, 0.05)
    auto.observe(ROWS, 5, 100.0, [5] * ROWS)
    assert auto.choose(ROWS) >= 4


def test_costs_are_linear_between_measurements() -> None:
    table = CostTable()
    table.observe(7, 0, 1.0)
    table.observe(8, 4, 3.0)
    assert table.predict(5, 1) == pytest.approx(1.5)
    assert table.predict(6, 5) == pytest.approx(3.0)
    assert table.as_dict() == {8: {0: 1.0, 4: 3.0}}


@pytest.mark.parametrize("kind", ["full", "hybrid"])
def test_tokens_stay_those_of_the_policy(kind: str) -> None:
    """Rounds with and without drafts alternate, so the head catches up on positions it has not seen."""
    policy = small_policy(kind)
    prompts = random_prompts((9, 1, 5, 2))
    engine = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens="auto", max_draft_tokens=4))
    greedy = [Request(id=str(i), prompt_tokens=p, max_tokens=60, sampling=GREEDY) for i, p in enumerate(prompts)]
    done = engine.generate(greedy)
    assert [c.tokens for c in done] == [greedy_reference(policy, p, 60) for p in prompts]
    assert sum(c.drafts.num_drafted for c in done) > 0
    assert engine.report().round_costs
    sampled = [
        Request(id=str(i), prompt_tokens=p, max_tokens=60, sampling=Sampling(), seed=i) for i, p in enumerate(prompts)
    ]
    automatic = run(policy, sampled, rule="coupled", num_draft_tokens="auto", max_draft_tokens=4)
    assert [c.tokens for c in automatic] == [c.tokens for c in run(policy, sampled, rule="coupled", num_draft_tokens=0)]
