"""The learner's bench reports what it measured and leaves the policy alone; its timings are no test's business."""

import json

import pytest
import torch

from bebop.bench.learn import LearnBench, bench_learn, played_groups
from bebop.errors import UserError
from bebop.models.policy import load_policy


def test_figures_of_both_arms():
    bench = LearnBench(tasks=("math",), groups=2, group_size=2, repetitions=2, micro_batch_tokens=512)
    policy = load_policy("tiny", dtype=torch.float32)
    before = {name: one.clone() for name, one in policy.backbone.state_dict().items()}
    groups = played_groups(policy, bench)
    assert [group.rewards for group in groups] == [(0.0, 1.0)] * 2
    told = []
    figures = json.loads(json.dumps(bench_learn(policy, groups, bench, told.append)))
    assert len(told) == 3
    assert set(figures["seconds"]) == {"whole", "shared"}
    rollouts = [one for group in groups for one in group.rollouts]
    assert figures["written"] == sum(sum(one.is_model) for one in rollouts)
    assert figures["tokens"] == sum(len(one.tokens) for one in rollouts)
    ratio = figures["speed_over_whole"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert all(torch.equal(one, before[name]) for name, one in policy.backbone.state_dict().items())


def test_a_group_needs_two_attempts():
    with pytest.raises(UserError, match="group size 2"):
        LearnBench(group_size=1)
