"""Supervised tuning: the loss is the cross-entropy of the policy's tokens; an interrupted run continues bit for bit."""

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.errors import UserError
from bebop.models.policy import new_policy
from bebop.models.tiny import base_config, tiny_hybrid_config, tiny_path
from bebop.runs import RunDirectory
from bebop.tasks.chat import Transcript, chat_of
from bebop.tasks.registry import load_task
from bebop.training.optimiser import OptimiserConfig, adamw, learning_rate
from bebop.training.sft import TrainSFT, batches_of, token_losses, train_sft, train_step
from bebop.training.transcripts import TokenBatch, pad, task_transcripts


def small_policy():
    config = base_config(["full_attention"] * 2)
    torch.manual_seed(0)
    return new_policy(Qwen3_5ForCausalLM(config).float().eval(), AutoTokenizer.from_pretrained(tiny_path()))


def settings(tmp_path, **changes):
    data = {"per_step": 6, "micro_batch_tokens": 400}
    made = {"policy": "x", "output": tmp_path / "out", "run": tmp_path / "run", "steps": 6, "checkpoint_every": 2}
    return TrainSFT.model_validate({**made, "data": data, "log_every": 1, **changes})


def source(policy, config):
    return task_transcripts(
        {"math": load_task("math")}, ["math"], chat_of(policy.tokenizer), config.data.per_step, config.data.max_tokens
    )


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


def test_packed_transcripts_have_the_losses_of_separate_ones(tmp_path):
    policy = small_policy()
    of_step = source(policy, settings(tmp_path))
    transcripts = [one for step in range(3) for one in of_step(step)]
    (together,) = batches_of(policy, transcripts, token_budget=10_000)
    assert together.starts_BT is not None
    assert together.tokens_BT.numel() < 1.25 * sum(len(one.tokens) for one in transcripts)
    packed, _ = token_losses(policy, together)
    alone = torch.cat([token_losses(policy, pad([one]))[0] for one in transcripts])
    torch.testing.assert_close(packed.sort().values, alone.sort().values, atol=1e-5, rtol=1e-5)


def test_what_opens_a_sequence_is_not_predicted_from_the_one_before_it():
    policy = small_policy()
    transcripts = [Transcript([5, 6, 7], [True] * 3), Transcript([8, 9], [True] * 2), Transcript([4] * 5, [True] * 5)]
    (batch,) = batches_of(policy, transcripts, token_budget=100)
    losses_N, _ = token_losses(policy, batch)
    assert len(losses_N) == 2 + 1 + 4


def test_a_hybrid_backbone_gets_one_transcript_a_row(tmp_path):
    policy = new_policy(Qwen3_5ForCausalLM(tiny_hybrid_config()).float(), AutoTokenizer.from_pretrained(tiny_path()))
    transcripts = source(policy, settings(tmp_path))(0)
    assert all(batch.starts_BT is None for batch in batches_of(policy, transcripts, token_budget=400))


def test_half_precision_policies_are_tuned_in_float32_weights(tmp_path):
    policy = small_policy()
    policy.backbone.bfloat16()
    before = policy.backbone.get_parameter("model.layers.0.mlp.up_proj.weight").clone().float()
    config = settings(tmp_path, steps=1, optimiser={"lr": 1e-6, "warmup_steps": 0})
    run = RunDirectory.create(config.run, config, ["test"])
    dtypes = []
    policy.backbone.get_submodule("model.layers.0.mlp.up_proj").register_forward_hook(
        lambda _, given, output: dtypes.append(output.dtype)
    )
    train_sft(config, policy, source(policy, config), run, lambda report: None)
    after = policy.backbone.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert set(dtypes) == {torch.bfloat16} and after.dtype == torch.float32
    # An update this small is lost in bfloat16.
    assert 0 < (after - before).abs().max() < 1e-5


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    config = settings(tmp_path, steps=3, checkpoint_every=1)
    policy = small_policy()

    def poison(report):
        if report.step == 2:
            with torch.no_grad():
                policy.backbone.get_parameter("model.norm.weight").fill_(torch.nan)

    run = RunDirectory.create(config.run, config, ["test"])
    with pytest.raises(UserError, match=r"step 2 is not finite; lower optimiser\.lr"):
        train_sft(config, policy, source(policy, config), run, poison)
    # The checkpoint of step 2 was written after the test had spoilt the weights; step 3 wrote none.
    assert [path.name for path in run.checkpoints_path.iterdir()] == ["step-00000002"]


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
