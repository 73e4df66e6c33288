"""The head learns, nothing else moves, and an interrupted run continues bit for bit."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3_5TextConfig

from bebop.config import load_config
from bebop.errors import UserError
from bebop.models.contracts import MIMO
from bebop.models.policy import new_policy
from bebop.runs import RunDirectory
from bebop.tasks.chat import Transcript
from bebop.training.draft_vocabulary import WrittenTokens
from bebop.training.hidden import in_memory, on_disk, recomputed
from bebop.training.mtp import MTPState, TrainingData, train_mtp, train_step
from bebop.training.mtp_config import TrainMTP
from bebop.training.plausibility import check_plausible
from bebop.training.samples import Sample, by_length, epochs, usable

VOCAB = 53
NOTHING = WrittenTokens.of([])
"""For losses on the whole vocabulary."""
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def small_policy(kind="qwen3_5"):
    torch.manual_seed(0)
    config = {
        "qwen3_5": lambda: Qwen3_5TextConfig(**SIZES, head_dim=16, layer_types=["full_attention"] * 2),
        "hybrid": lambda: Qwen3_5TextConfig(
            **SIZES,
            head_dim=16,
            layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
        ),
        "llama": lambda: LlamaConfig(**SIZES),
        "mimo": lambda: Qwen2Config(**SIZES),
    }[kind]()
    backbone = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        # Sharp enough to have something to learn.
        backbone.get_output_embeddings().weight.mul_(12.0)
    return new_policy(backbone, contract=MIMO if kind == "mimo" else None)


def sampled(policy, count=12, length=18, prompt=4):
    """Sequences of unequal length that the policy continued itself, at temperature 1."""
    torch.manual_seed(1)
    tokens_BT = torch.randint(3, VOCAB, (count, prompt))
    with torch.no_grad():
        for _ in range(length - prompt):
            logits_BV = policy.logits(policy.run_backbone(tokens_BT).hidden_BTH[:, -1])
            tokens_BT = torch.cat([tokens_BT, logits_BV.softmax(-1).multinomial(1)], dim=1)
    rows = [row[: length - place % 5].tolist() for place, row in enumerate(tokens_BT)]
    return [
        Sample(id=f"s{place}", transcript=Transcript(row, [n >= prompt for n in range(len(row))]))
        for place, row in enumerate(rows)
    ]


def settings(tmp_path, *overrides):
    base = (
        "policy=x",
        f"output={tmp_path / 'out'}",
        f"run={tmp_path / 'run'}",
        "steps=6",
        "checkpoint_every=2",
        "log_every=1",
        "data.per_step=6",
        "data.micro_batch_tokens=60",
        "optimiser.lr=3e-3",
        "optimiser.warmup_steps=2",
    )
    return load_config(TrainMTP, None, [*base, *overrides])


def data_of(policy, config, samples=None):
    samples = samples or sampled(policy)
    return TrainingData(
        written=WrittenTokens.of(one.transcript for one in samples),
        samples=epochs(samples, config.data.per_step, config.data.seed),
        hiddens=in_memory(policy, by_length(samples, config.data.micro_batch_tokens), lambda: None),
    )


def one_step(policy, config, data=None):
    state = MTPState(policy, config)
    report = train_step(config, policy, data or data_of(policy, config), state, 0)
    return report, torch.cat([one.detach().flatten() for one in policy.head.parameters()])


def test_only_the_head_changes_and_it_learns(tmp_path):
    policy = small_policy()
    config = settings(tmp_path, "steps=30", "loss.objective=kl", "loss.warm_up=null", "data.micro_batch_tokens=999")
    before = {name: one.clone() for name, one in policy.backbone.state_dict().items()}
    head = policy.head.fuse.weight.clone()
    reports = []
    run = RunDirectory.create(config.run, config, ["test"])
    train_mtp(config, policy, data_of(policy, config), run, reports.append)
    assert all(torch.equal(one, before[name]) for name, one in policy.backbone.state_dict().items())
    assert all(one.grad is None for one in policy.backbone.parameters())
    assert not torch.equal(policy.head.fuse.weight, head)
    assert reports[-1].loss.value < 0.5 * reports[0].loss.value
    for first, last in zip(reports[0].overlaps, reports[-1].overlaps, strict=True):
        assert 1 - last.value < 0.8 * (1 - first.value)
    assert reports[-1].accepted.value > reports[0].accepted.value + 0.1


@pytest.mark.parametrize("objective", ["ce", "e2e_tv", "lk_lambda"])
@pytest.mark.parametrize("kind", ["qwen3_5", "llama", "mimo"])
def test_fused_and_plain_losses_make_the_same_update(tmp_path, objective, kind):
    found = []
    for fused in ("true", "false"):
        # One micro-batch: the guide of lk_lambda is the mean overlap of what is seen at once.
        config = settings(
            tmp_path,
            f"loss.fused={fused}",
            f"loss.objective={objective}",
            "loss.warm_up=null",
            "data.micro_batch_tokens=9999",
            "loss.more_temperatures=[0.7]",
        )
        found.append(one_step(small_policy(kind), config))
    (fast, fast_weights), (slow, slow_weights) = found
    assert fast.loss.value == pytest.approx(slow.loss.value, rel=1e-4)
    assert [one.value for one in fast.overlaps] == pytest.approx([one.value for one in slow.overlaps], rel=1e-4)
    assert fast.grad_norm == pytest.approx(slow.grad_norm, rel=1e-3)
    torch.testing.assert_close(fast_weights, slow_weights, atol=2e-4, rtol=1e-3)


def test_a_loss_on_drawn_tokens_trains_for_the_whole_vocabulary(tmp_path):
    """Judged on all tokens, a head that was trained on those of the data and a few others is nearly as good."""
    found = {}
    for num_drawn in ("null", "2"):
        policy = small_policy()
        kl = ("loss.objective=kl", "loss.warm_up=null")
        whole = settings(tmp_path, *kl)
        config = settings(tmp_path, *kl, "steps=40", f"run={tmp_path / num_drawn}", f"loss.drawn_tokens={num_drawn}")
        data = data_of(policy, config)
        assert len(data.written.tokens) + 2 < VOCAB
        found["before"] = one_step(small_policy(), whole, data)[0].accepted.value
        reports = []
        train_mtp(config, policy, data, RunDirectory.create(config.run, config, ["test"]), reports.append)
        found[num_drawn] = one_step(policy, whole, data)[0].accepted.value
        found[f"loss {num_drawn}"] = reports[0].loss.value
    assert found["loss null"] != found["loss 2"]
    assert found["null"] > found["before"] + 0.1
    assert found["2"] - found["before"] > 0.7 * (found["null"] - found["before"])


def test_drawn_tokens_stand_for_others_at_one_temperature(tmp_path):
    with pytest.raises(UserError, match="leave it or more_temperatures out"):
        settings(tmp_path, "loss.drawn_tokens=5", "loss.more_temperatures=[0.7]")


@pytest.mark.parametrize("layout", ["ttt", "plain"])
@pytest.mark.parametrize("kind", ["qwen3_5", "llama", "mimo"])
def test_recomputed_activations_make_the_same_update(tmp_path, kind, layout):
    kept, recomputed_ = (
        one_step(
            small_policy(kind),
            settings(tmp_path, "loss.warm_up=null", f"unroll.layout={layout}", f"unroll.recompute={recompute}"),
        )
        for recompute in ("false", "true")
    )
    assert kept[0].loss == recomputed_[0].loss and kept[0].grad_norm == recomputed_[0].grad_norm
    assert torch.equal(kept[1], recomputed_[1])


def test_micro_batches_do_not_change_the_loss(tmp_path):
    reports = [
        one_step(small_policy(), settings(tmp_path, f"data.micro_batch_tokens={size}", "loss.warm_up=null"))[0]
        for size in (9999, 40)
    ]
    assert reports[0].loss.count == reports[1].loss.count
    assert reports[0].loss.value == pytest.approx(reports[1].loss.value, rel=1e-5)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-4)


def test_hidden_states_from_memory_disk_and_the_backbone_agree(tmp_path):
    """Whether the backbone sees sequences packed, or, where it is recurrent, one a row."""
    for kind in ("qwen3_5", "mimo", "hybrid"):
        policy = small_policy(kind)
        samples = sampled(policy)
        groups = by_length(samples, 60)
        config = settings(tmp_path)
        directory = tmp_path / f"hidden-{kind}"
        sources = [
            recomputed(policy),
            in_memory(policy, groups, lambda: None),
            on_disk(policy, groups, directory, lambda: None),
            on_disk(policy, [], directory, lambda: pytest.fail("the backbone ran again")),
        ]
        losses = []
        for source in sources:
            data = TrainingData(written=NOTHING, samples=epochs(samples, 6, 0), hiddens=source)
            losses.append(one_step(small_policy(kind), config, data)[0].loss.value)
        assert losses[1:] == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_run_stopped_anywhere_continues_bit_for_bit(tmp_path):
    def run(directory, stop_after=None):
        config = settings(directory, "loss.warm_up.until_overlap=0.2", "optimiser.lr=2e-2")
        policy = small_policy()
        place = RunDirectory(config.run) if config.run.exists() else RunDirectory.create(config.run, config, ["test"])

        def show(report):
            if report.step == stop_after:
                raise KeyboardInterrupt

        train_mtp(config, policy, data_of(policy, config), place, show)
        return policy, [
            {name: value for name, value in row.values.items() if not name.startswith("time/")}
            for row in place.metrics()
        ]

    whole, whole_rows = run(tmp_path / "whole")
    assert {row["mtp/is_warm"] for row in whole_rows} == {0.0, 1.0}, "the warm-up ends within the run"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=5)
    resumed, rows = run(tmp_path / "cut")
    assert rows == whole_rows
    for left, right in zip(whole.head.parameters(), resumed.head.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_warm_up_ends_for_good(tmp_path):
    config = settings(tmp_path, "loss.warm_up.until_overlap=0.0001")
    policy = small_policy()
    reports = []
    train_mtp(
        config,
        policy,
        data_of(policy, config),
        RunDirectory.create(config.run, config, ["test"]),
        reports.append,
    )
    assert [one.is_warm for one in reports] == [False] + [True] * 5
    assert all(one.loss.value <= 1 for one in reports[1:])


def test_one_lucky_batch_does_not_end_the_warm_up(tmp_path):
    state = MTPState(small_policy(), settings(tmp_path))
    seen = [state.running_overlap(overlap) for overlap in [0.9] * 100 + [1.0] + [0.96] * 100]
    assert max(seen[:101]) < 0.95 < seen[-1]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    policy = small_policy()
    config = settings(tmp_path)
    data = data_of(policy, config)

    def hiddens(pack):
        found = data.hiddens(pack)
        if any(one.id == broken for one in pack.members):
            return dataclasses.replace(found, draft_input_BTH=found.draft_input_BTH * torch.nan)
        return found

    config = settings(tmp_path, "data.per_step=2", "checkpoint_every=1")
    source, first = epochs(sampled(policy), 2, 0), 3
    broken = source(first)[1].id
    run = RunDirectory.create(config.run, config, ["test"])
    with pytest.raises(UserError, match=rf"step {first} is not finite.*{broken}\b"):
        train_mtp(
            config, policy, TrainingData(written=NOTHING, samples=source, hiddens=hiddens), run, lambda report: None
        )
    assert [path.name for path in run.checkpoints_path.iterdir()] == ["step-00000003"]
    assert all(one.isfinite().all() for one in policy.head.parameters())


def test_half_precision_policies_train_a_float32_head(tmp_path):
    policy = small_policy()
    samples = sampled(policy)
    policy.backbone.bfloat16()
    policy.head.bfloat16()
    config = settings(tmp_path, "optimiser.lr=1e-6", "optimiser.warmup_steps=0")
    data = TrainingData(written=NOTHING, samples=epochs(samples, 6, 0), hiddens=recomputed(policy))
    before = policy.head.fuse.weight.clone()
    report, _ = one_step(policy, config, data)
    assert policy.head.fuse.weight.dtype == torch.float32
    # An update this small is lost in bfloat16.
    assert 0 < (policy.head.fuse.weight - before.float()).abs().max() < 1e-5
    assert torch.isfinite(torch.tensor(report.loss.value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("unroll.depths=2", "train at least as deep"),
        ("unroll.layout=tt", "layout 'tt' is unknown"),
        ("loss.objective=e2e", "did you mean"),
        ("loss.more_temperatures=[0.0]", "above 0"),
        ("data.temperature=0", "temperature"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        settings(tmp_path, override)


def test_foreign_and_empty_data_are_refused():
    policy = small_policy()
    samples = sampled(policy)
    with pytest.raises(UserError, match=r"s3 has token \d+, outside the policy's vocabulary of 20.*another tokenizer"):
        usable([samples[3]], 20, 100, "rows.jsonl")
    with pytest.raises(UserError, match="marks no token of the policy within the first 4"):
        usable(samples, VOCAB, 4, "rows.jsonl")
    assert [one.num_tokens for one in usable(samples, VOCAB, 15, "rows.jsonl")] == [15, 15, 15, 15, 14] * 2 + [15, 15]


def test_tokens_that_the_policy_would_not_write_are_refused():
    policy = small_policy()
    samples = sampled(policy)
    check_plausible(policy, samples, "rows.jsonl")
    foreign = [
        Sample(id=one.id, transcript=Transcript([VOCAB - 1 - token for token in one.transcript.tokens], is_model))
        for one in samples
        for is_model in [one.transcript.is_model]
    ]
    with pytest.raises(UserError, match=r"rows.jsonl: the policy finds .* less likely than blind guesses"):
        check_plausible(policy, foreign, "rows.jsonl")


def test_every_sample_comes_once_an_epoch():
    samples = sampled(small_policy())
    source = epochs(samples, 6, seed=3)
    first, second = ([one.id for step in steps for one in source(step)] for steps in ((0, 1), (2, 3)))
    assert sorted(first) == sorted(second) == sorted(one.id for one in samples)
    assert first != second
    assert [one.id for one in source(1)] == first[6:]
