"""`bebop train-sft`: a tuned policy that loads, a head that is kept, refusals that write nothing."""

import json
import re

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.cli import train_sft as cli
from bebop.errors import UserError
from bebop.models.names import output_path
from bebop.models.policy import load_policy, new_policy, save_policy
from bebop.models.tiny import base_config, tiny_path

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    torch.manual_seed(0)
    backbone = Qwen3_5ForCausalLM(base_config(["full_attention"])).bfloat16().eval()
    path = tmp_path_factory.mktemp("policies") / "small"
    save_policy(new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path())), path)
    return path


def tune(policy_path, place, *more):
    config = place / "config.yaml"
    config.write_text("{}\n")
    settings = [
        f"policy={policy_path}",
        f"output={place / 'out'}",
        f"run={place / 'run'}",
        "steps=3",
        "checkpoint_every=1",
        "log_every=1",
        "data.per_step=3",
        "dtype=float32",
        *more,
    ]
    cli.command(config, settings, False)


def test_the_tuned_policy_loads_and_keeps_its_head(policy_path, tmp_path, capsys):
    tune(policy_path, tmp_path)
    before, after = load_policy(policy_path), load_policy(tmp_path / "out")
    assert before.fingerprint.differing_groups(after.fingerprint) == ("embedding", "lm_head", "backbone")
    assert after.dtype == torch.bfloat16
    losses = [json.loads(line)["sft/loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [loss["count"] > 0 for loss in losses] == [True] * 3
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_a_second_start_ends_where_the_first_did(policy_path, tmp_path):
    tune(policy_path, tmp_path)
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    tune(policy_path, tmp_path)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first


def test_a_run_goes_on_with_a_lower_learning_rate_as_its_error_advises(policy_path, tmp_path):
    tune(policy_path, tmp_path)
    tune(policy_path, tmp_path, "steps=4", "optimiser.lr=1e-5")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_chats_of_a_file_are_learned_from(policy_path, tmp_path):
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    tune(policy_path, tmp_path, f"data.chats={tmp_path / 'chats.jsonl'}", "head=none")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    answer = AutoTokenizer.from_pretrained(tiny_path()).encode("yes<|im_end|>")
    assert rows[0]["sft/loss"]["count"] == 3 * len(answer)
    assert load_policy(tmp_path / "out").head is not None, "a head that was not loaded is carried along"


def test_smollm2_sft_is_written_where_it_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path))
    assert output_path("smollm2-sft") == tmp_path / "smollm2-sft"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.tasks=[{name: maths}]", "there is no task 'maths'; did you mean math"),
        ("data.tasks=[{name: code, options: {max_steps: 1}}]", "max_steps should be greater than or equal to 2"),
        ("data.chats=absent.jsonl", "there is no file absent.jsonl"),
        ("policy=tinny", "There is no policy 'tinny'"),
        ("optimiser.name=adam", "optimiser.name should be 'adamw' or 'muon'"),
        ("head=old", "head should be"),
        ("output=/proc/none/out", "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(policy_path, tmp_path, change, message):
    (tmp_path / "config.yaml").write_text("{}\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=re.escape(message)):
        tune(policy_path, tmp_path, change)
    assert sorted(tmp_path.rglob("*")) == before
