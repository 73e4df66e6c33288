"""Supervised tuning: the loss is the cross-entropy of the policy's tokens; an interrupted run continues bit for bit."""

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.errors import UserError
from bebop.models.policy import new_policy
from bebop.models.tiny import base_config, tiny_path
from bebop.runs import RunDirectory
from bebop.tasks.registry import load_task
from bebop.training.optimiser import OptimiserConfig, adamw, learning_rate
from bebop.training.sft import TrainSFT, token_losses, train_sft, train_step
from bebop.training.transcripts import TokenBatch, task_transcripts


def small_policy():
    config = base_config(["full_attention"] * 2)
    torch.manual_seed(0)
    return new_policy(Qwen3_5ForCausalLM(config).float().eval(), AutoTokenizer.from_pretrained(tiny_path()))


def settings(tmp_path, **changes):
    data = {"per_step": 6, "micro_batch_tokens": 400}
    made = {"policy": "x", "output": tmp_path / "out", "run": tmp_path / "run", "steps": 6, "checkpoint_every": 2}
    return TrainSFT.model_validate({**made, "data": data, "log_every": 1, **changes})


def source(policy, config):
    return task_transcripts([load_task("math")], policy.tokenizer, config.data.per_step, config.data.max_tokens)


def test_the_loss_is_the_cross_entropy_of_the_models_tokens_alone():
    policy = small_policy()
    tokens_BT = torch.randint(3, 900, (2, 9))
    is_target_BT = torch.rand(2, 9) < 0.5
    losses_N, _ = token_losses(policy, TokenBatch(tokens_BT=tokens_BT, is_target_BT=is_target_BT))
    logprobs_BTV = policy.backbone(input_ids=tokens_BT).logits.double().log_softmax(-1)
    expected = [
        -logprobs_BTV[row, place - 1, tokens_BT[row, place]]
        for row in range(2)
        for place in range(1, 9)
        if is_target_BT[row, place]
    ]
    torch.testing.assert_close(losses_N.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_micro_batches_do_not_change_the_update(tmp_path):
    """One update, cut two ways: the same weights up to rounding."""
    after = []
    for micro_batch_tokens in (10_000, 150):
        config = settings(tmp_path, data={"per_step": 6, "micro_batch_tokens": micro_batch_tokens})
        policy = small_policy()
        optimiser = torch.optim.SGD(policy.backbone.parameters(), lr=1.0)
        train_step(config, policy, source(policy, config)(0), optimiser, step=0)
        after.append(torch.cat([one.flatten() for one in policy.backbone.parameters()]))
    torch.testing.assert_close(after[0], after[1], atol=1e-6, rtol=1e-4)


def test_a_run_stopped_anywhere_continues_bit_for_bit(tmp_path):
    def run(directory, stop_after=None):
        config = settings(directory)
        policy = small_policy()
        place = RunDirectory(config.run) if config.run.exists() else RunDirectory.create(config.run, config, ["test"])

        def show(report):
            if report.step == stop_after:
                raise KeyboardInterrupt

        train_sft(config, policy, source(policy, config), place, show)
        return policy, [row.values["sft/loss"] for row in place.metrics()]

    whole, whole_losses = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=5)
    resumed, losses = run(tmp_path / "cut")
    assert losses == whole_losses
    for left, right in zip(whole.backbone.parameters(), resumed.backbone.parameters(), strict=True):
        assert torch.equal(left, right)


def test_training_learns(tmp_path):
    config = settings(tmp_path, steps=30, optimiser={"lr": 3e-3, "warmup_steps": 5})
    policy = small_policy()
    losses = []
    train_sft(
        config,
        policy,
        source(policy, config),
        RunDirectory.create(config.run, config, ["test"]),
        lambda report: losses.append(report.loss.value),
    )
    assert losses[-1] < 0.6 * losses[0]


def test_a_damaged_checkpoint_is_named(tmp_path):
    config = settings(tmp_path, steps=2)
    run = RunDirectory.create(config.run, config, ["test"])
    policy = small_policy()
    train_sft(config, policy, source(policy, config), run, lambda report: None)
    (checkpoint,) = run.checkpoints_path.iterdir()
    (checkpoint / "weights.safetensors").write_bytes(b"12345678" * 4)
    with pytest.raises(UserError, match=r"step-00000002 is damaged"):
        train_sft(config, policy, source(policy, config), run, lambda report: None)


def test_the_learning_rate_warms_up_and_falls():
    config = OptimiserConfig(lr=1.0, warmup_steps=10, final_share=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(100, 100, config) == pytest.approx(0.1)
    assert learning_rate(55, 100, config.model_copy(update={"schedule": "linear"})) == pytest.approx(0.55)


def test_norms_are_not_decayed():
    policy = small_policy()
    decayed, plain = adamw(policy.backbone.parameters(), OptimiserConfig()).param_groups
    assert decayed["weight_decay"] > 0 and plain["weight_decay"] == 0
    assert all(one.dim() >= 2 for one in decayed["params"]) and all(one.dim() < 2 for one in plain["params"])
