"""A head trained beside the policy learns, and nothing but the head ever hears of it."""

import copy

import pytest
import torch

import bebop.rl.learner as learner_module
import bebop.rl.online_head as head_module
from bebop.config import load_config
from bebop.core.chains import TemperatureMixture, plain_loss
from bebop.core.curriculum import objective_named
from bebop.core.sampling import Sampling
from bebop.engines.base import DraftStats
from bebop.errors import UserError
from bebop.models.policy import Policy
from bebop.rl.drift import DriftTrigger
from bebop.rl.learner import Learner
from bebop.rl.learner_config import DriftConfig, LearnerConfig, OnlineHeadConfig
from bebop.tasks.chat import Transcript
from bebop.training.chain_plan import plan_chains
from bebop.training.draft_loss import draft_chains
from bebop.training.hidden import Hiddens
from bebop.training.optimiser import OptimiserConfig, update
from bebop.training.transcripts import pad
from tests.rl.rollouts import sampled_groups, small_policy

REWARDS = [[0, 1, 0, 1], [0.5, 0, 1, 0]]
FAST = OptimiserConfig(lr=1e-2, schedule="constant", warmup_steps=0, weight_decay=0.0)


def learner_of(policy, head, **settings):
    sampling = settings.pop("sampling", None)
    return Learner(policy, LearnerConfig(**settings), num_updates=50, sampling=sampling, head=head)


def gradients(monkeypatch, policy, groups, head, **settings):
    """Gradients of both optimiser steps, trunk's and head's by name, before any clip, and the report."""
    trunk, of_head = {}, {}

    def keep(found, module):
        def step(optimiser, lr, max_grad_norm):
            found.update({name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None})
            return update(optimiser, lr, max_grad_norm)

        return step

    monkeypatch.setattr(learner_module, "update", keep(trunk, policy.backbone))
    monkeypatch.setattr(head_module, "update", keep(of_head, policy.head))
    report = learner_of(policy, head, **settings).update(groups)
    return trunk, of_head, report


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("objective", ["ce", "e2e_tv", "lk_lambda"])
def test_the_heads_loss_never_reaches_trunk_embedding_or_lm_head(monkeypatch, tied, objective):
    groups = sampled_groups(small_policy(tied=tied), REWARDS, num_draft_tokens=3)
    alone, without, plain = gradients(monkeypatch, small_policy(tied=tied), groups, None)
    head = OnlineHeadConfig(objective=objective, optimiser=FAST.model_copy(update={"lr": 10.0}))
    beside, of_head, report = gradients(monkeypatch, small_policy(tied=tied), groups, head)
    assert not without
    assert of_head and all(one.abs().sum() > 0 for one in of_head.values())
    assert alone.keys() == beside.keys()
    for name, one in alone.items():
        assert torch.equal(beside[name], one), name
    # The policy's clip and step do not see the head's gradient either.
    assert report.metrics["grad_norm"] == plain.metrics["grad_norm"]


def test_a_head_whose_loss_did_reach_the_embedding_would_be_noticed(monkeypatch):
    groups = sampled_groups(small_policy(), REWARDS, num_draft_tokens=3)
    alone, _, _ = gradients(monkeypatch, small_policy(), groups, None)
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss, inputs=None: backward(loss))
    beside, _, _ = gradients(monkeypatch, small_policy(), groups, OnlineHeadConfig())
    assert [name for name, one in alone.items() if not torch.equal(beside[name], one)] == ["model.embed_tokens.weight"]


def test_the_policys_loss_never_reaches_the_head(monkeypatch):
    groups = sampled_groups(small_policy(), REWARDS, num_draft_tokens=3)
    _, first, _ = gradients(monkeypatch, small_policy(), groups, OnlineHeadConfig())
    _, second, _ = gradients(monkeypatch, small_policy(), groups, OnlineHeadConfig(), kl_weight=0.5, mean="rollout")
    for name, one in first.items():
        assert torch.equal(second[name], one), name


def test_a_frozen_head_stays_what_it_was():
    policy = small_policy()
    before = {name: one.clone() for name, one in policy.head.state_dict().items()}
    learner = learner_of(policy, None, optimiser=FAST)
    learner.update(sampled_groups(policy, REWARDS, num_draft_tokens=3))
    assert all(torch.equal(one, before[name]) for name, one in policy.head.state_dict().items())
    assert not any(one.requires_grad for one in policy.head.parameters())
    assert not any(name.startswith("head.") for name in learner.tensors())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_heads_gradient_is_that_of_training_it_alone(monkeypatch, temperature):
    sampling = Sampling(temperature=temperature)
    policy = small_policy(tied=True)
    groups = sampled_groups(policy, REWARDS, num_draft_tokens=3, sampling=sampling)
    expected = gradient_alone(policy, groups, temperature)
    for budget in (10_000, 40):
        _, found, report = gradients(
            monkeypatch,
            small_policy(tied=True),
            groups,
            OnlineHeadConfig(objective="e2e_tv", depths=2),
            micro_batch_tokens=budget,
            drop_zero_advantages=False,
            sampling=sampling,
        )
        assert found.keys() == expected.keys()
        for name, one in expected.items():
            torch.testing.assert_close(found[name], one, atol=1e-6, rtol=1e-3)
        assert report.metrics["online/loss"].count == sum(
            report.metrics[f"online/overlap@{depth}"].count for depth in (1, 2)
        )


def gradient_alone(policy: Policy, groups, temperature):
    """With a frozen backbone, in padded rows, and every logit at once."""
    policy = copy.deepcopy(policy)
    policy.backbone.requires_grad_(False)
    rows = pad([Transcript(list(one.tokens), list(one.is_model)) for group in groups for one in group.rollouts])
    state = policy.run_backbone(rows.tokens_BT)
    hiddens = Hiddens(draft_input_BTH=state.draft_input_BTH, target_BTH=state.hidden_BTH)
    chains = draft_chains(policy, hiddens, plan_chains(rows, 2), "ttt")
    mixture = TemperatureMixture(temperatures=(temperature,))
    plain_loss(chains, policy.backbone.lm_head.weight, objective_named("e2e_tv"), mixture).mean.backward()
    return {name: one.grad for name, one in policy.head.named_parameters()}


@pytest.mark.parametrize("objective", ["kl", "tv", "e2e_tv"])
def test_an_online_head_overlaps_more_with_its_policy(objective):
    policy = small_policy()
    groups = sampled_groups(policy, REWARDS * 3, num_draft_tokens=3)
    learner = learner_of(policy, OnlineHeadConfig(objective=objective, optimiser=FAST))
    reports = [learner.update(groups) for _ in range(12)]
    first, last = (one.metrics["online/overlap@1"].value for one in (reports[0], reports[-1]))
    assert last > first + 0.02


def test_the_head_is_clipped_by_its_own_norm(monkeypatch):
    groups = sampled_groups(small_policy(), REWARDS, num_draft_tokens=3)
    norms = []
    monkeypatch.setattr(
        head_module, "update", lambda optimiser, lr, limit: norms.append((lr, limit)) or update(optimiser, lr, limit)
    )
    head = OnlineHeadConfig(optimiser=OptimiserConfig(lr=5e-3, schedule="constant", warmup_steps=0, max_grad_norm=0.01))
    report = learner_of(small_policy(), head).update(groups)
    assert norms == [(5e-3, 0.01)]
    assert report.metrics["online/grad_norm"] > 0.01
    assert report.metrics["online/lr"] == 5e-3


def test_a_head_that_diverges_stops_the_run_and_stays(monkeypatch):
    policy = small_policy()
    groups = sampled_groups(policy, REWARDS, num_draft_tokens=3)
    with torch.no_grad():
        policy.head.fuse.weight[0, 0] = torch.nan
    before = policy.head.fuse.weight.clone()
    with pytest.raises(UserError, match=r"MTP head's loss of update 1 is not finite; lower mtp\.online\.optimiser\.lr"):
        learner_of(policy, OnlineHeadConfig()).update(groups)
    assert torch.equal(policy.head.fuse.weight.nan_to_num(), before.nan_to_num())


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="did you mean 'e2e_tv'"):
        load_config(OnlineHeadConfig, None, ["objective=e2e_tw"])
    with pytest.raises(UserError, match="layout 'tree' is unknown"):
        load_config(OnlineHeadConfig, None, ["layout=tree"])
    policy = small_policy()
    with pytest.raises(UserError, match="no MTP head to train"):
        learner_of(Policy(backbone=policy.backbone, contract=policy.contract), OnlineHeadConfig())


def drafts(num_rounds, num_accepted):
    """Rounds of one draft."""
    return DraftStats(rounds=num_rounds, drafted=(num_rounds,), reached=(num_rounds,), accepted=(num_accepted,))


def test_drift_starts_and_ends_the_training():
    trigger = DriftTrigger(DriftConfig(tolerance=0.1, recovered=0.5, window=2))
    accepted = (80, 80, 80, 76, 75, 66, 66, 74, 74, 79, 80)
    seen = [trigger.observe(drafts(100, one)) for one in accepted]
    # Means of the last two against 80: on below 72, off above 76.
    means = (80, 78, 75.5, 70.5, 66, 70, 74, 76.5, 79.5)
    assert [sum(accepted[n - 1 : n + 1]) / 2 for n in range(2, len(accepted))] == list(means)
    assert seen == [False, False, False, False, False, True, True, True, True, False, False]


def test_drift_weighs_rounds_and_ignores_those_without_drafts():
    trigger = DriftTrigger(DriftConfig(tolerance=0.1, window=1))
    assert not trigger.observe(drafts(1000, 500))
    assert not trigger.observe(DraftStats(rounds=50))
    assert not trigger.observe(drafts(10, 5))
    assert trigger.observe(drafts(10, 4))
    assert trigger.observe(DraftStats(rounds=50))


def test_a_head_without_drift_is_left_alone():
    policy = small_policy()
    learner = learner_of(policy, OnlineHeadConfig(drift=DriftConfig(window=1), optimiser=FAST))
    before = policy.head.fuse.weight.clone()
    for _ in range(2):
        report = learner.update(sampled_groups(small_policy(), REWARDS, num_draft_tokens=3))
        assert report.metrics["online/is_training"] == 0
    assert torch.equal(policy.head.fuse.weight, before)
    worse = sampled_groups(small_policy(), REWARDS, num_draft_tokens=3)
    assert worse[0].rollouts[0].drafts.num_drafted > 0
    learner._head._trigger.state[1] = torch.tensor([1.0, 3.0])
    assert learner.update(worse).metrics["online/is_training"] == 1
    assert not torch.equal(policy.head.fuse.weight, before)
