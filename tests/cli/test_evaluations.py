"""`bebop eval-policy` and `bebop eval-mtp`: JSON for programs, tables for people, one line per mistake."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.cli.main import run
from bebop.models.policy import new_policy, save_policy
from bebop.models.tiny import base_config, tiny_path

RULES = ("target_only", "rejection", "block", "coupled")


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    """A random policy, sharp enough that some drafts are accepted."""
    torch.manual_seed(0)
    backbone = Qwen3_5ForCausalLM(base_config(["full_attention"] * 2)).float().eval()
    with torch.no_grad():
        backbone.get_output_embeddings().weight.mul_(6.0)
    path = tmp_path_factory.mktemp("policies") / "small"
    policy = new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path()))
    save_policy(policy, path)
    save_policy(replace(policy, head=None), path.with_name("headless"))
    return path


def outcome(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(words)
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def eval_mtp(policy_path, *more):
    few = ("--tasks", "math,code", "--problems", "4", "--max-turn-tokens", "16", "--rules", ",".join(RULES))
    return ("eval-mtp", str(policy_path), *few, *more)


def test_acceptance_in_json(policy_path, capsys):
    code, out, _ = outcome(capsys, *eval_mtp(policy_path, "--json", "--calibrate", "--temperature", "0.8"))
    record = json.loads(out)
    assert code == 0 and (record["temperature"], record["k"]) == (0.8, 3)
    assert [task["task"] for task in record["tasks"]] == ["math", "code"]
    for task in record["tasks"]:
        figures = task["figures"]
        for rule in RULES:
            rate, length = figures[f"{rule}/acceptance_rate"], figures[f"{rule}/accept_length"]
            assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
            assert 1 <= length["value"] <= 4 and figures[f"{rule}/estimated_round_length"]["value"] >= 1
            assert figures[f"{rule}/conditional@1"]["count"] > 0
        named = ("target_entropy", "draft_entropy@3", "overlap@3", "prefers_rejection@3")
        assert all(name in figures for name in named)
        assert len(task["draft_temperatures"]) == 3
        assert "calibrated/estimated_round_length" in figures


def test_acceptance_as_tables(policy_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = outcome(capsys, *eval_mtp(policy_path, "--calibrate"))
    assert code == 0
    for text in (
        "acceptance rate",
        "draft entropy by depth",
        "rejection beats target-only",
        "draft temperature by depth",
    ):
        assert text in out
    assert all(out.count(rule) >= 2 for rule in RULES)


def test_heads_are_compared_along_the_same_rollouts(policy_path, capsys, monkeypatch):
    few = ("--tasks", "math", "--problems", "4", "--max-turn-tokens", "16", "--rules", "rejection")
    words = ("eval-mtp", str(policy_path), *few, "--against", str(policy_path))
    code, out, _ = outcome(capsys, *words, "--json")
    (task,) = json.loads(out)["tasks"]
    of_other = task["others"][str(policy_path)]
    length = "rejection/estimated_round_length"
    assert code == 0 and of_other["differences"][length] == {"value": 0, "low": 0, "high": 0}
    assert of_other["figures"][length] == task["figures"][length]
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = outcome(capsys, *words)
    assert code == 0 and "difference to it" in out and "+0.000 (+0.000 to +0.000)" in out


def test_another_policy_cannot_be_compared_with(policy_path, capsys):
    code, _, err = outcome(capsys, "eval-mtp", "tiny", "--against", str(policy_path))
    assert code == 2 and "is another policy (" in err and "compare heads that were trained on one policy" in err


def test_greedy_rounds_can_be_measured(policy_path, capsys):
    code, out, _ = outcome(capsys, *eval_mtp(policy_path, "--json", "--temperature", "0"))
    tasks = json.loads(out)["tasks"]
    assert code == 0
    for figures in (task["figures"] for task in tasks):
        rates = {figures[f"{rule}/acceptance_rate"]["value"] for rule in RULES}
        assert len(rates) == 1, "all rules are one at temperature 0"
        for rule in RULES:
            expected, length = (
                figures[f"{rule}/{name}"]["value"] for name in ("estimated_emitted", "emitted_per_round")
            )
            assert expected == pytest.approx(length)


def test_reward_and_entropy_in_json(policy_path, capsys):
    words = ("eval-policy", str(policy_path), "--tasks", "math", "--problems", "2", "--json")
    code, out, _ = outcome(capsys, *words)
    (score,) = json.loads(out)
    assert (code, score["task"], score["reward"]["count"]) == (0, "math", 2)
    assert score["entropy"]["total"] > 0 and sum(score["reasons"].values()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--temperature", "-1"), "temperature is -1.0: use 0 for greedy"),
        (("--temperature", "1e-9"), "temperature is 1e-09: use 0 for greedy"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--tasks", "maths"), "there is no task 'maths'; did you mean math?"),
        (("--rules", "chain"), "there is no verification rule 'chain'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(policy_path, capsys, words, message):
    code, out, err = outcome(capsys, "eval-mtp", str(policy_path), *words)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_a_policy_without_a_head_cannot_be_evaluated(policy_path, capsys):
    code, _, err = outcome(capsys, "eval-mtp", str(policy_path.with_name("headless")))
    assert code == 2 and "has no MTP head to evaluate; train one with `bebop train-mtp`" in err
