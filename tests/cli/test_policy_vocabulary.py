"""`bebop policy vocabulary`: what a head may draft, taken from rollouts and written beside the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bebop.audit.policies import Format, PolicyRecipe, write_policy
from bebop.cli.main import run as run_cli
from bebop.models.policy import load_policy, new_policy, save_policy
from bebop.models.tiny import tiny_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stop:
        run_cli(["policy", *arguments])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the shipped policy."""
    copy = tmp_path / "tiny"
    copy.mkdir()
    for file in tiny_path().iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def rollouts(tmp_path: Path, *written: list[int]) -> Path:
    """Each after a prompt of two tokens."""
    rows = [{"tokens": [900, 901, *one], "is_model": [False, False] + [True] * len(one)} for one in written]
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_the_tokens_of_the_rollouts(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.read_bytes() for file in tiny.iterdir() if file.name != "bebop.json"}
    trained_on = json.loads((tiny / "bebop.json").read_text())["head_trained_on"]
    code, out, _ = call(capsys, "vocabulary", str(tiny), str(rollouts(tmp_path, [7, 3, 5], [5, 3, 7])))
    assert code == 0 and "3 of 1024 tokens" in out
    assert load_policy(tiny).draft_vocabulary == (3, 5, 7)
    assert json.loads((tiny / "bebop.json").read_text())["head_trained_on"] == trained_on
    assert {name: (tiny / name).read_bytes() for name in before} == before
    assert "3 of 1024 tokens" in call(capsys, "show", str(tiny))[1]


def test_every_token_where_the_rollouts_say_too_little(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "vocabulary", str(tiny), str(rollouts(tmp_path, [7, 3, 5], [5, 3, 7])))
    code, out, _ = call(capsys, "vocabulary", str(tiny), str(rollouts(tmp_path, [7, 3], [5, 3])))
    assert code == 0 and "every token" in out
    assert load_policy(tiny).draft_vocabulary is None


def test_every_token_where_that_is_wanted(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(rollouts(tmp_path, [7, 3, 5], [5, 3, 7]))
    call(capsys, "vocabulary", str(tiny), file)
    assert call(capsys, "vocabulary", str(tiny), file, "--every-token")[0] == 2
    assert call(capsys, "vocabulary", str(tiny))[0] == 2
    assert load_policy(tiny).draft_vocabulary == (3, 5, 7)
    assert call(capsys, "vocabulary", str(tiny), "--every-token")[0] == 0
    assert load_policy(tiny).draft_vocabulary is None


def test_rollouts_of_another_tokenizer_are_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tiny / "bebop.json").read_bytes()
    code, _, err = call(capsys, "vocabulary", str(tiny), str(rollouts(tmp_path, [5000, 5001], [5000, 5001])))
    assert code == 2 and "token 5001, outside the policy's vocabulary" in err
    assert (tiny / "bebop.json").read_bytes() == before


def test_a_draft_directory_has_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "eagle"
    write_policy(PolicyRecipe(format=Format.EAGLE, vocabulary=8), path)
    rows = [{"tokens": [1, 2, 3, 4], "is_model": [False, False, True, True]}] * 2
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert call(capsys, "vocabulary", str(path), str(file))[0] == 0
    for directory in (path, path / "eagle"):
        assert json.loads((directory / "bebop.json").read_text())["draft_vocabulary"] == [3, 4]


def test_what_has_no_head_is_refused(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load_policy(tiny, head="none")
    save_policy(replace(new_policy(policy.backbone, policy.tokenizer), head=None), tmp_path / "headless")
    code, _, err = call(capsys, "vocabulary", str(tmp_path / "headless"), str(rollouts(tmp_path, [7])))
    assert code == 2 and "put it back with `bebop policy stitch`" in err
