"""The learner's gradient is GRPO's, however it is cut up; its log-probs are the engine's; its state survives a stop."""

import copy
import dataclasses
import math

import pytest
import torch

import bebop.rl.learner as learner_module
from bebop.core.sampling import Sampling
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.errors import UserError
from bebop.rl.batch import learn_batches, trace_of
from bebop.rl.learner import Learner
from bebop.rl.learner_config import LearnerConfig, OnlineHeadConfig
from bebop.rl.logprobs import token_logprobs
from bebop.rl.prompt_sharing import run_layout
from bebop.training.checkpoint import load_latest, save_checkpoint
from bebop.training.optimiser import OptimiserConfig, update
from tests.rl.rollouts import changed, sampled_groups, small_policy

REWARDS = [[0, 1, 0, 1], [0.1] * 4, [0.5, 0, 1, 0], [0, 0, 0, 1]]
FAST = OptimiserConfig(lr=1e-2, schedule="constant", warmup_steps=0, weight_decay=0.0)


def learner_of(policy, **settings):
    more = {key: settings.pop(key) for key in ("sampling", "head", "reference") if key in settings}
    return Learner(policy, LearnerConfig(**settings), num_updates=10, **more)


def gradient_of(monkeypatch, policy, groups, **settings):
    """The gradient of the only optimiser step, by parameter name, and the report."""
    found = {}

    def keep(optimiser, lr, max_grad_norm):
        named = {id(one): name for name, one in policy.backbone.named_parameters()}
        for group in optimiser.param_groups:
            found.update({named[id(one)]: one.grad.clone() for one in group["params"] if id(one) in named})
        return update(optimiser, lr, max_grad_norm)

    monkeypatch.setattr(learner_module, "update", keep)
    report = learner_of(policy, **settings).update(groups)
    return found, report


def weights_of(policy):
    return {name: one.detach().clone() for name, one in policy.backbone.named_parameters()}


def aged(groups, amount=0.4):
    """The same rollouts, sampled by somebody whose log-probs differ."""

    def other(one):
        (turn,) = one.turns
        shifts = [amount * math.sin(7 * place + one.plan.seed) for place in range(len(turn.completion.logprobs))]
        moved = [value + shift for value, shift in zip(turn.completion.logprobs, shifts, strict=True)]
        return changed(one, logprobs=tuple(min(0.0, value) for value in moved))

    return [dataclasses.replace(group, rollouts=tuple(map(other, group.rollouts))) for group in groups]


def float64_gradient(policy, groups, *, max_importance=2.0, by_rollout=False):
    """The same from the formula, rollout by rollout, in float64 with every logit."""
    backbone = copy.deepcopy(policy.backbone).double()
    total, num_rollouts = 0.0, sum(len(group.rollouts) for group in groups)
    num_tokens = sum(one.num_model_tokens for group in groups for one in group.rollouts)
    for group in groups:
        rewards = torch.tensor(group.rewards, dtype=torch.float64)
        spread = rewards.std(unbiased=False)
        for one, reward in zip(group.rollouts, rewards, strict=True):
            advantage = (reward - rewards.mean()) / spread if len(set(group.rewards)) > 1 else 0.0
            tokens_T = torch.tensor(one.tokens)
            logprobs_TV = backbone(input_ids=tokens_T[None], use_cache=False).logits[0].double().log_softmax(-1)
            own = [place for place, is_model in enumerate(one.is_model) if is_model]
            current_N = logprobs_TV[[place - 1 for place in own], tokens_T[own]]
            behaviour_N = torch.tensor(one.turns[0].completion.logprobs, dtype=torch.float64)
            weight_N = (current_N.detach() - behaviour_N).exp().clamp(max=max_importance)
            each = 1 / (num_rollouts * len(own)) if by_rollout else 1 / num_tokens
            total = total - (weight_N * advantage * current_N).sum() * each
    total.backward()
    return {name: one.grad for name, one in backbone.named_parameters()}


def assert_close(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    scale = max(one.abs().max().item() for one in expected.values())
    assert scale > 0
    for name, gradient in found.items():
        error = (gradient.double() - expected[name].double()).abs().max().item()
        assert error < tolerance * scale, (name, error, scale)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mean", ["token", "rollout"])
def test_the_gradient_is_that_of_the_formula_in_float64(monkeypatch, tied, mean):
    policy = small_policy(tied=tied)
    groups = aged(sampled_groups(policy, REWARDS))
    expected = float64_gradient(policy, groups, max_importance=1.2, by_rollout=mean == "rollout")
    found, report = gradient_of(monkeypatch, policy, groups, mean=mean, max_importance=1.2)
    assert 0 < report.metrics["importance/truncated"].value < 1
    assert_close(found, expected)


@pytest.mark.parametrize("settings", [{}, {"ratio": "sequence"}, {"mean": "rollout", "clip_against": "behaviour"}])
def test_micro_batches_do_not_change_the_gradient(monkeypatch, settings):
    groups = aged(sampled_groups(small_policy(), REWARDS))
    whole, report = gradient_of(monkeypatch, small_policy(), groups, micro_batch_tokens=10_000, **settings)
    for budget in (1, 40):
        cut, other = gradient_of(monkeypatch, small_policy(), groups, micro_batch_tokens=budget, **settings)
        assert_close(cut, whole)
        assert other.metrics["grpo/loss"].value == pytest.approx(report.metrics["grpo/loss"].value, rel=1e-4)


def test_others_are_served_after_every_micro_batch():
    groups = sampled_groups(small_policy(), REWARDS)
    served = []
    learner = learner_of(small_policy(), micro_batch_tokens=1)
    learner.update(groups, lambda: served.append(learner.version))
    assert served == [0] * 12, "one trace a micro-batch, and a group that teaches nothing"


def test_what_is_left_out_had_no_gradient(monkeypatch):
    groups = aged(sampled_groups(small_policy(), REWARDS))
    kept, all_report = gradient_of(monkeypatch, small_policy(), groups, drop_zero_advantages=False)
    dropped, report = gradient_of(monkeypatch, small_policy(), groups)
    assert_close(dropped, kept)
    assert report.metrics["grpo/loss"].count < all_report.metrics["grpo/loss"].count
    for one in (report, all_report):
        assert (one.metrics["groups/used"], one.metrics["groups/zero_variance"]) == (3, 1)


def test_nothing_to_learn_moves_nothing_but_the_version():
    policy = small_policy()
    groups = sampled_groups(policy, [[1, 1], [0, 0]])
    learner = learner_of(policy)
    before = weights_of(policy)
    report = learner.update(groups)
    assert all(torch.equal(one, before[name]) for name, one in policy.backbone.named_parameters())
    assert (report.version, learner.version) == (1, 1)
    assert (report.metrics["groups/used"], report.metrics["groups/zero_variance"]) == (0, 2)
    assert learner.update([]).version == 2


def test_rewarded_attempts_become_likelier():
    policy = small_policy()
    groups = sampled_groups(policy, [[0, 1, 0, 1]] * 3)
    learner = learner_of(policy, optimiser=FAST)

    def likelihood():
        rows = [(one, reward) for group in groups for one, reward in zip(group.rollouts, group.rewards, strict=True)]
        with torch.no_grad():
            return [(learner_logprobs(policy, one, Sampling()).mean().item(), bool(reward)) for one, reward in rows]

    before = likelihood()
    learner.update(groups)
    gains = [(new - old, good) for (new, good), (old, _) in zip(likelihood(), before, strict=True)]
    assert min(gain for gain, good in gains if good) > max(gain for gain, good in gains if not good)


def learner_logprobs(policy, one, sampling):
    (batch,) = learn_batches([trace_of(one, 1.0)], 10_000)
    states = run_layout(policy, batch.layout)
    return token_logprobs(policy, states.before_NH, batch.layout.written_N, sampling)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.6), Sampling(temperature=1.3, top_k=5), Sampling(top_p=0.7)]
)
@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_the_learners_log_probs_are_the_samplers(sampling, num_draft_tokens):
    policy = small_policy(tied=True)
    groups = sampled_groups(policy, REWARDS[:1], sampling=sampling, num_draft_tokens=num_draft_tokens)
    for one in groups[0].rollouts:
        with torch.no_grad():
            found_N = learner_logprobs(policy, one, sampling)
        assert found_N.tolist() == pytest.approx(list(one.turns[0].completion.logprobs), abs=2e-5)
    metrics = learner_of(policy, sampling=sampling).update(groups).metrics
    assert metrics["mismatch_kl"].count == metrics["grpo/loss"].count
    assert 0 <= metrics["mismatch_kl"].value < 1e-9
    assert metrics["importance/ratio"].value == pytest.approx(1, abs=1e-4)


def test_another_temperature_than_the_rollouts_shows_as_mismatch():
    policy = small_policy()
    groups = sampled_groups(policy, REWARDS[:1], sampling=Sampling(temperature=0.5))
    assert learner_of(policy).update(groups).metrics["mismatch_kl"].value > 1e-3


def test_mismatch_is_measured_on_fresh_tokens_alone():
    policy = small_policy()
    groups = sampled_groups(policy, REWARDS[:1])
    learner = learner_of(policy)
    learner.version = 2
    metrics = learner.update(groups).metrics
    assert metrics["mismatch_kl"].count == 0
    assert metrics["lag"].value == 2


def test_logits_in_tiles_give_the_same_log_probs_and_gradient():
    policy = small_policy()
    torch.manual_seed(0)
    states_NH = torch.randn(10, 32, requires_grad=True)
    tokens_N = torch.randint(0, 23, (10,))
    found = []
    for num_bytes in (10**9, 4 * 23 * 3):
        policy.backbone.zero_grad()
        logprobs_N = token_logprobs(policy, states_NH, tokens_N, Sampling(temperature=0.7), num_bytes)
        (gradient_NH,) = torch.autograd.grad(logprobs_N.square().sum(), states_NH, retain_graph=True)
        logprobs_N.square().sum().backward()
        found.append((logprobs_N.detach(), gradient_NH, policy.backbone.lm_head.weight.grad.clone()))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, whole)


def test_an_engine_that_loads_the_published_tensors_samples_with_them():
    for tied in (False, True):
        policy = small_policy(tied=tied)
        worker = copy.deepcopy(policy)
        learner = learner_of(policy, optimiser=FAST)
        learner.update(sampled_groups(policy, REWARDS[:1]))
        tensors = learner.tensors()
        assert len({one.data_ptr() for one in tensors.values()}) == len(tensors)
        EmbeddedEngine(worker, EmbeddedOptions(num_draft_tokens=0)).load_weights(1, tensors)
        groups = sampled_groups(worker, REWARDS[:1], version=1)
        metrics = learner.update(groups).metrics
        assert metrics["lag/max"] == 0
        assert metrics["mismatch_kl"].count > 0
        assert metrics["mismatch_kl"].value < 1e-9


def test_minibatches_are_compared_with_the_policy_before_the_first_of_them():
    policy = small_policy()
    groups = sampled_groups(policy, [[0, 1, 0, 1]] * 4)
    report = learner_of(policy, minibatches=2, optimiser=FAST, clip_low=0.01, clip_high=0.01).update(groups)
    # Rollouts are fresh, so the importance is 1 although the second minibatch meets a policy that has moved.
    assert report.metrics["importance/max"] == pytest.approx(1, abs=1e-4)
    assert report.metrics["grpo/clipped"].value > 0
    assert report.metrics["grad_norm"].count == 2


def test_minibatches_are_steps_on_their_share_of_every_group():
    # Halves with the group's own mean and spread; fresh rollouts, so proximal is behaviour.
    groups = sampled_groups(small_policy(), [[0, 0, 1, 1]] * 2)
    halves = [[dataclasses.replace(one, rollouts=one.rollouts[first::2]) for one in groups] for first in range(2)]
    together, in_turn = small_policy(), small_policy()
    report = learner_of(together, minibatches=2, optimiser=FAST).update(groups)
    assert report.metrics["importance/max"] == pytest.approx(1, abs=1e-4)
    learner = learner_of(in_turn, clip_against="behaviour", optimiser=FAST)
    for half in halves:
        learner.update(half)
    for name, one in weights_of(in_turn).items():
        torch.testing.assert_close(weights_of(together)[name], one, atol=2e-4, rtol=1e-4)


def test_a_kl_costs_nothing_at_the_start_and_pulls_back_later(monkeypatch):
    groups = sampled_groups(small_policy(), REWARDS)
    plain, _ = gradient_of(monkeypatch, small_policy(), groups, drop_zero_advantages=False)
    held, report = gradient_of(monkeypatch, small_policy(), groups, kl_weight=10.0)
    assert_close(held, plain)
    assert report.metrics["grpo/kl"].value == pytest.approx(0, abs=1e-9)
    # A KL has a gradient where an advantage has none.
    assert report.metrics["grpo/kl"].count == sum(one.num_model_tokens for group in groups for one in group.rollouts)
    monkeypatch.undo()
    drifts = []
    for weight in (0.0, 5.0):
        policy, start = small_policy(), weights_of(small_policy())
        learner = learner_of(policy, kl_weight=weight, optimiser=OptimiserConfig(lr=3e-3, warmup_steps=0))
        for _ in range(8):
            report = learner.update(groups)
        drifts.append(sum((one - start[name]).square().sum().item() for name, one in weights_of(policy).items()))
        if weight:
            assert report.metrics["grpo/kl"].value > 0
    assert drifts[1] < drifts[0]


@pytest.mark.parametrize("drift", [None, {"window": 1}])
def test_a_learner_restored_from_a_checkpoint_goes_on_bit_for_bit(tmp_path, drift):
    head = OnlineHeadConfig(drift=drift, optimiser=FAST)
    batches = [sampled_groups(small_policy(), [[0, 1, 0, 1]] * 2, num_draft_tokens=k) for k in (3, 2, 1, 3)]

    def fresh():
        return learner_of(small_policy(), head=head, optimiser=FAST)

    whole = fresh()
    reports = [whole.update(groups) for groups in batches]
    first = fresh()
    for groups in batches[:2]:
        first.update(groups)
    save_checkpoint(tmp_path, first.version, first.trained)
    second = fresh()
    second.version = load_latest(tmp_path, second.trained)
    for groups, report in zip(batches[2:], reports[2:], strict=True):
        assert second.update(groups) == report
    assert whole.tensors().keys() == second.tensors().keys()
    for name, one in whole.tensors().items():
        assert torch.equal(one, second.tensors()[name]), name


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_an_update_that_is_not_finite_stops_and_leaves_the_weights(broken):
    policy = small_policy()
    groups = sampled_groups(policy, REWARDS[:1])
    with torch.no_grad():
        policy.backbone.lm_head.weight[3] = broken
    learner = learner_of(policy)
    before = weights_of(policy)
    with pytest.raises(UserError, match=r"update 1 is not finite.*learner\.optimiser\.lr"):
        learner.update(groups)
    for name, one in weights_of(policy).items():
        assert torch.equal(one.nan_to_num(), before[name].nan_to_num())


def test_a_half_precision_policy_is_trained_in_float32_and_published_as_it_came():
    policy = small_policy()
    groups = sampled_groups(policy, REWARDS)
    policy.backbone.bfloat16()
    before = weights_of(policy)
    learner = learner_of(policy, optimiser=OptimiserConfig(lr=1e-6, warmup_steps=0))
    report = learner.update(groups)
    assert {one.dtype for one in policy.backbone.parameters()} == {torch.float32}
    assert {one.dtype for one in learner.tensors().values()} == {torch.bfloat16}
    # An update this small is lost in bfloat16.
    change = max((one - before[name].float()).abs().max().item() for name, one in weights_of(policy).items())
    assert 0 < change < 1e-5
    assert 0 < report.metrics["mismatch_kl"].value < 1e-2


def test_rollouts_without_chance_are_refused():
    with pytest.raises(UserError, match="temperature above 0"):
        learner_of(small_policy(), sampling=Sampling(temperature=0.0))
