"""The quickstart's commands are commands: each parses, and its configuration resolves with its overrides."""

import shlex
import shutil
from pathlib import Path

import pytest
from document_checks import problems_of

from bebop.cli.quickstart import command
from bebop.errors import UserError
from bebop.models.tiny import tiny_path
from bebop.quickstart.plan import SCALES, commands, own_scale, plan


@pytest.mark.parametrize("policy", SCALES)
def test_every_command_can_be_run(policy: str, tmp_path: Path) -> None:
    acts = plan(SCALES[policy], tmp_path)
    assert len(acts) == 5
    problems = [problem for act in acts for step in act.steps for problem in problems_of(["bebop", *step.arguments])]
    assert problems == []


def test_what_a_dry_run_prints_can_be_typed(tmp_path: Path) -> None:
    lines = commands(plan(SCALES["tiny"], tmp_path), tmp_path)
    assert lines[0] == f"mkdir -p {tmp_path}/out"
    printed = [line.rpartition(" > ")[2] for line in lines[1:]]
    (report,) = (shlex.split(line) for line in lines if line.startswith("bebop report"))
    assert "Bebop quickstart" in report
    assert {word for word in report[:-2] if "/out/" in word} < set(printed)


def test_the_arms_differ_in_the_head_alone(tmp_path: Path) -> None:
    lines = [line for line in commands(plan(SCALES["tiny"], tmp_path), tmp_path) if line.startswith("bebop train-rl")]
    settings = [set(shlex.split(line.partition(" > ")[0])) for line in lines]
    shared = set.intersection(*settings)
    assert len(lines) == 3
    assert {word.partition("=")[0] for words in settings for word in words - shared} == {
        "policy",
        "mtp.mode",
        "mtp.rule",
        "run",
        "output",
    }


def test_a_policy_that_is_there_is_not_tuned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path))
    command(policy="smollm2-sft", dry_run=True)
    assert "train-sft" in capsys.readouterr().out
    (tmp_path / "smollm2-sft").mkdir()
    (tmp_path / "smollm2-sft" / "config.json").write_text("{}")
    command(policy="smollm2-sft", dry_run=True)
    assert "train-sft" not in capsys.readouterr().out
    (first, *_) = plan(SCALES["smollm2-sft"], tmp_path, tmp_path / "smollm2-sft")
    assert f"{tmp_path / 'smollm2-sft'} is taken as it is" in first.purpose


def test_a_checkpoint_of_ones_own_gets_the_same_acts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(policy=str(tiny_path()), dry_run=True)
    printed = capsys.readouterr().out
    assert "runs/quickstart-tiny/head-ce" in printed and "mtp-own.yaml" in printed
    assert "head=fresh" not in printed and "thinking" not in printed, "it has a head and does not think"
    scale = own_scale(str(tiny_path()), has_head=False, stops_thinking=True)
    acts = plan(scale, tmp_path)
    assert [problem for act in acts for step in act.steps for problem in problems_of(["bebop", *step.arguments])] == []
    told = [line for line in commands(acts, tmp_path) if "thinking" in line]
    assert len(told) == 8 and sum("head=fresh" in line for line in told) == 2


def test_a_policy_that_thinks_is_told_not_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thinker = shutil.copytree(tiny_path(), tmp_path / "thinker")
    template = (thinker / "chat_template.jinja").read_text()
    opened = (
        "{% if add_generation_prompt %}<think>"
        "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
    )
    (thinker / "chat_template.jinja").write_text(template + opened)
    command(policy=str(thinker), dry_run=True)
    assert capsys.readouterr().out.count("thinking=false") == 5


def test_another_policy_is_told_what_to_do() -> None:
    with pytest.raises(UserError, match="choose one of tiny, smollm2-sft or a checkpoint's directory"):
        command(policy="llama")
