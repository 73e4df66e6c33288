"""GRPO's advantages and loss: hand-computed values, exact expectations, gradients, and what rounding must not do."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from bebop.core.grpo import (
    ClipSettings,
    TokenLogProbs,
    group_advantages,
    has_signal,
    kl_estimate,
    mean_of_rollout,
    policy_loss,
)


def logs(*probs):
    return torch.tensor(probs, dtype=torch.float64).log()


def loss_of(current, proximal, behaviour, advantages, settings=None, **more):
    logprobs = TokenLogProbs(current_N=current, proximal_N=proximal, behaviour_N=behaviour, **more)
    return policy_loss(logprobs, torch.tensor(advantages, dtype=torch.float64), settings or ClipSettings())


def gradient_of(current, *rest, **more):
    leaf = current.clone().requires_grad_()
    loss_of(leaf, *rest, **more).loss_N.sum().backward()
    return leaf.grad


@pytest.mark.parametrize("normalise", [True, False])
def test_advantages_of_a_group_sum_to_zero(normalise):
    generator = torch.Generator().manual_seed(0)
    for size in (2, 3, 8, 64):
        rewards_G = torch.rand(size, generator=generator).round(decimals=1)
        advantages_G = group_advantages(rewards_G, normalise=normalise)
        assert abs(advantages_G.sum().item()) < 1e-12
        if normalise and has_signal(rewards_G):
            assert advantages_G.square().mean().item() == pytest.approx(1)


def test_advantages_are_those_computed_by_hand():
    # Mean 0.5, deviations +-0.5, std 0.5.
    assert group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0])).tolist() == [1, -1, -1, 1]
    # Mean 0.25, std sqrt(3)/4.
    expected = [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3
    assert group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist() == pytest.approx(expected)
    assert group_advantages(torch.tensor([1.0, 0.0]), normalise=False).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_have_no_advantage_whatever_they_round_to(reward):
    # The mean of three times 0.1 is not 0.1 in binary, so a std of 1e-17 would make advantages of 1 out of nothing.
    rewards_G = torch.full((3,), reward, dtype=torch.float64)
    assert not has_signal(rewards_G)
    assert group_advantages(rewards_G).tolist() == [0, 0, 0]


def test_the_loss_is_the_one_computed_by_hand():
    settings = ClipSettings(low=0.1, high=0.1, max_importance=1.5)
    loss = loss_of(
        logs(0.6, 0.4, 0.6, 0.52),
        logs(0.5, 0.5, 0.5, 0.50),
        logs(0.25, 1.0, 0.5, 0.50),
        [1.0, -1.0, -1.0, 1.0],
        settings,
    )
    # Importance 2 is truncated to 1.5, ratio 1.2 clipped to 1.1: -1.5 * 1.1.
    # Importance 0.5, ratio 0.8 raised to 0.9: 0.5 * 0.9.
    # Ratio 1.2 with a negative advantage is not clipped: 1.2.
    # Ratio 1.04 is within the clip: -1.04.
    assert loss.loss_N.tolist() == pytest.approx([-1.65, 0.45, 1.2, -1.04])
    assert loss.importance_N.tolist() == pytest.approx([2.0, 0.5, 1.0, 1.0])
    assert loss.is_truncated_N.tolist() == [True, False, False, False]
    assert loss.is_clipped_N.tolist() == [True, True, False, False]


def test_the_gradient_is_the_weighted_ratio_or_nothing():
    settings = ClipSettings(low=0.1, high=0.1, max_importance=1.5)
    gradient_N = gradient_of(
        logs(0.6, 0.4, 0.6, 0.52), logs(0.5, 0.5, 0.5, 0.5), logs(0.25, 1, 0.5, 0.4), [1.0, -1.0, -1.0, 2.0], settings
    )
    assert gradient_N.tolist() == pytest.approx([0.0, 0.0, 1.2, -1.25 * 1.04 * 2])


def test_on_policy_the_gradient_is_reinforces():
    current_N = logs(0.9, 0.2, 0.01)
    assert gradient_of(current_N, current_N, current_N, [1.5, -0.5, 2.0]).tolist() == [-1.5, 0.5, -2.0]
    # Also where proximal is the very tensor that is trained.
    leaf_N = current_N.clone().requires_grad_()
    loss_of(leaf_N, leaf_N, current_N, [1.5, -0.5, 2.0]).loss_N.sum().backward()
    assert leaf_N.grad.tolist() == [-1.5, 0.5, -2.0]


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_gradients_agree_with_finite_differences(ratio, kl_weight):
    generator = torch.Generator().manual_seed(1)
    current_N, proximal_N, behaviour_N, reference_N = -torch.rand(4, 12, generator=generator, dtype=torch.float64) * 0.5
    rollout_N = torch.tensor([0] * 3 + [1] * 5 + [2] * 4)
    advantages = torch.randn(12, generator=generator).tolist()
    settings = ClipSettings(ratio=ratio, kl_weight=kl_weight, max_importance=1.2)

    def loss_N(leaf_N):
        return loss_of(
            leaf_N, proximal_N, behaviour_N, advantages, settings, reference_N=reference_N, rollout_N=rollout_N
        ).loss_N

    assert loss_of(
        current_N, proximal_N, behaviour_N, advantages, settings, reference_N=reference_N, rollout_N=rollout_N
    ).is_clipped_N.any()
    assert gradcheck(loss_N, (current_N.requires_grad_(),))


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens():
    current_N, proximal_N = logs(0.4, 0.9, 0.3), logs(0.5, 0.5, 0.3)
    rollout_N = torch.tensor([0, 0, 1])
    settings = ClipSettings(ratio="sequence", low=1.0, high=9.0)
    loss = loss_of(current_N, proximal_N, proximal_N, [1.0, 1.0, 1.0], settings, rollout_N=rollout_N)
    geometric = math.sqrt(0.8 * 1.8)
    assert loss.loss_N.tolist() == pytest.approx([-geometric, -geometric, -1])
    # All tokens of a rollout share the loss; together they give each of them the ratio as gradient.
    leaf_N = current_N.clone().requires_grad_()
    loss_of(leaf_N, proximal_N, proximal_N, [1.0] * 3, settings, rollout_N=rollout_N).loss_N.sum().backward()
    assert leaf_N.grad.tolist() == pytest.approx([-geometric, -geometric, -1])


def test_means_of_rollouts_do_not_need_their_tokens_side_by_side():
    values_N = torch.tensor([1.0, 10.0, 3.0, 20.0])
    assert mean_of_rollout(values_N, torch.tensor([0, 1, 0, 1])).tolist() == [2, 15, 2, 15]
    assert mean_of_rollout(torch.zeros(0), torch.zeros(0, dtype=torch.long)).tolist() == []


def test_the_importance_weight_makes_another_samplers_gradient_the_learners():
    # Exactly, over a vocabulary of 5: sum_v behaviour(v) w(v) A(v) d log p(v) = sum_v p(v) A(v) d log p(v).
    generator = torch.Generator().manual_seed(2)
    logits_V, other_V = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    advantages_V = torch.randn(5, generator=generator, dtype=torch.float64).tolist()
    behaviour_V = other_V.log_softmax(0)
    gradients = []
    for sampler_V in (behaviour_V, logits_V.log_softmax(0)):
        leaf_V = logits_V.clone().requires_grad_()
        current_V = leaf_V.log_softmax(0)
        loss = loss_of(current_V, current_V.detach(), sampler_V, advantages_V, ClipSettings(max_importance=1e9))
        (sampler_V.exp() * loss.loss_N).sum().backward()
        gradients.append(leaf_V.grad)
    torch.testing.assert_close(*gradients)


def test_the_kl_estimate_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(3)
    sampled_V, other_V = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (sampled_V.exp() * (sampled_V - other_V)).sum()
    torch.testing.assert_close((sampled_V.exp() * kl_estimate(sampled_V, other_V)).sum(), exact)
    assert (kl_estimate(sampled_V, other_V) >= 0).all()
    # The reference is twice as likely: 2 - ln 2 - 1.
    loss = loss_of(logs(0.2), logs(0.2), logs(0.2), [0.0], ClipSettings(kl_weight=0.5), reference_N=logs(0.4))
    assert loss.kl_N.item() == pytest.approx(1 - math.log(2))
    assert loss.loss_N.item() == pytest.approx(0.5 * (1 - math.log(2)))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_token_outside_the_learners_support_counts_for_nothing(ratio):
    settings = ClipSettings(ratio=ratio, kl_weight=0.1)
    inside = logs(0.5, 0.4)
    leaf_N = torch.cat([inside, torch.tensor([-math.inf, -1.0])]).requires_grad_()
    proximal_N = torch.cat([inside, torch.tensor([-math.inf, -math.inf])])
    loss = loss_of(
        leaf_N,
        proximal_N,
        logs(0.5, 0.4, 0.1, 0.1),
        [1.0, -1.0, 3.0, -3.0],
        settings,
        reference_N=logs(0.5, 0.0, 0.3, 0.3),
        rollout_N=torch.zeros(4, dtype=torch.long),
    )
    loss.loss_N.sum().backward()
    assert loss.loss_N[2:].tolist() == [0, 0]
    assert loss.importance_N[2:].tolist() == [0, 0]
    assert leaf_N.grad.isfinite().all()
    assert leaf_N.grad[2:].tolist() == [0, 0]


def test_no_log_ratio_overflows():
    extremes_N = torch.tensor([-1e4, 0.0, -1e-3], dtype=torch.float32)
    leaf_N = extremes_N.clone().requires_grad_()
    loss = loss_of(leaf_N, extremes_N.flip(0), extremes_N.roll(1), [1.0, -1.0, 1.0])
    loss.loss_N.sum().backward()
    assert loss.loss_N.isfinite().all()
    assert leaf_N.grad.isfinite().all()


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"high": 0.0}, {"max_importance": 0.5}, {"kl_weight": -1.0}])
def test_constants_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        ClipSettings(**wrong)
