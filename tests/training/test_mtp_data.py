"""Where the head's data come from: the policy's own rollouts, played once, or files; what is wrong is named."""

import importlib.util
import json
import re
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.cli import train_mtp as cli
from bebop.errors import UserError
from bebop.models.policy import load_policy, new_policy, save_policy
from bebop.models.tiny import base_config, tiny_path
from bebop.tasks.chat import chat_of
from bebop.training import collect
from bebop.training.mtp_config import CollectConfig
from bebop.training.sample_files import read_samples

ROWS = [{"tokens": [5, 6, 7, 8], "is_model": [False, False, True, True]}, {"tokens": [9, 9], "is_model": [False, True]}]
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random policy on disk, with tiny's tokenizer and no head."""
    torch.manual_seed(0)
    backbone = Qwen3_5ForCausalLM(base_config(["full_attention"])).bfloat16().eval()
    path = tmp_path_factory.mktemp("policies") / "small"
    policy = new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path()))
    save_policy(type(policy)(backbone=backbone, tokenizer=policy.tokenizer, contract=policy.contract), path)
    return path


def overrides(directory, tmp_path, *more):
    return [
        f"policy={directory}",
        "head=fresh",
        f"output={tmp_path / 'out'}",
        f"run={tmp_path / 'run'}",
        "steps=3",
        "checkpoint_every=1",
        "log_every=1",
        "dtype=float32",
        "data.collect.tasks=[{name: math}]",
        "data.collect.num_episodes=4",
        "data.collect.max_turn_tokens=10",
        "data.per_step=4",
        *more,
    ]


def empty_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("{}\n")
    return path


def test_the_command_trains_a_servable_head_and_leaves_the_policy_as_it_is(directory, tmp_path, capsys):
    cli.command(empty_config(tmp_path), overrides(directory, tmp_path), False)
    before, after = load_policy(directory, head="none"), load_policy(tmp_path / "out", strict=True)
    assert after.fingerprint.backbone == before.fingerprint.backbone
    assert after.head is not None and after.head_trained_on == before.fingerprint.backbone
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["math"] * 4
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert metrics[0]["mtp/overlap@5"]["count"] > 0
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_a_second_start_takes_the_data_and_steps_that_are_there(directory, tmp_path, monkeypatch):
    cli.command(empty_config(tmp_path), overrides(directory, tmp_path), False)
    monkeypatch.setattr(collect, "play", lambda *_: pytest.fail("the policy played again"))
    cli.command(empty_config(tmp_path), overrides(directory, tmp_path), False)
    with pytest.raises(UserError, match="holds a run with other settings"):
        cli.command(empty_config(tmp_path), overrides(directory, tmp_path, "data.per_step=2"), False)
    cli.command(empty_config(tmp_path), overrides(directory, tmp_path, "steps=4"), False)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3, 4], "a larger number of steps goes on"


def test_an_interrupted_collection_goes_on_and_ends_the_same(directory, tmp_path):
    policy = load_policy(directory, dtype=torch.float32, head="none")
    config = CollectConfig(tasks=({"name": "math"},), num_episodes=5, max_turn_tokens=6, rows=2)

    def stop_at(done):
        def show(number, _):
            if number == done:
                raise KeyboardInterrupt

        return show

    whole = collect.collected(policy, config, 1.0, tmp_path / "whole.jsonl", lambda *_: None)
    cut = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect.collected(policy, config, 1.0, cut, stop_at(2))
    # A kill in the middle of a line.
    with cut.with_suffix(".part").open("a") as file:
        file.write('{"id": "half')
    played = []
    again = collect.collected(policy, config, 1.0, cut, lambda number, _: played.append(number))
    assert played == [3, 4, 5]
    assert again == whole and len(whole) == 5
    assert not cut.with_suffix(".part").exists()


def test_an_output_that_cannot_be_written_stops_before_the_work(directory, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there and no checkpoint"):
        cli.command(empty_config(tmp_path), overrides(directory, tmp_path), False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        cli.command(
            empty_config(tmp_path), overrides(directory, tmp_path, f"output={tmp_path / 'file' / 'out'}"), False
        )
    assert not (tmp_path / "run").exists()


def test_a_policy_without_a_head_is_told_how_to_get_one(directory, tmp_path):
    bare = shutil.copytree(directory, tmp_path / "bare")
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "mtp_num_hidden_layers": 0}))
    with pytest.raises(UserError, match="set head=fresh"):
        cli.command(empty_config(tmp_path), overrides(bare, tmp_path, "head=auto"), False)


def no_chat():
    """Opens none, as there is no tokenizer."""
    return chat_of(None)


def write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_rows_come_from_jsonl_and_parquet_alike(tmp_path):
    lines = write_lines(tmp_path / "rows.jsonl", ROWS)
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for path in (lines, tmp_path / "rows.parquet"):
        read = [(one.transcript.tokens, one.transcript.is_model) for one in read_samples(path, no_chat)]
        assert read == [(row["tokens"], row["is_model"]) for row in ROWS]


def test_chats_are_tokenised_as_the_tasks_are(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    (sample,) = read_samples(write_lines(tmp_path / "chats.jsonl", [CHAT]), lambda: chat_of(tokenizer))
    assert tokenizer.decode(sample.transcript.tokens) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )
    written = [t for t, mine in zip(sample.transcript.tokens, sample.transcript.is_model, strict=True) if mine]
    assert tokenizer.decode(written) == "yes<|im_end|>"
    with pytest.raises(UserError, match="no tokenizer"):
        read_samples(tmp_path / "chats.jsonl", no_chat)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hi"}, r"rows.jsonl:2 is not a row"),
        ({"tokens": [1, 2], "is_model": [True]}, r"rows.jsonl:2: tokens and is_model must be lists of one length"),
        ({"tokens": ["a"], "is_model": [True]}, r"rows.jsonl:2: tokens and is_model"),
        ({"messages": [{"role": "user"}]}, r"rows.jsonl:2 is not a chat"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, row, message):
    path = write_lines(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(UserError, match=message):
        read_samples(path, lambda: chat_of(AutoTokenizer.from_pretrained(tiny_path())))


def fake_datasets(rows):
    """What is used of the package `datasets`, which the tests do without."""
    module = ModuleType("datasets")
    module.__spec__ = ModuleSpec("datasets", None)

    class Dataset(list):
        pass

    def load_from_disk(path):
        if not (Path(path) / "state.json").exists():
            raise FileNotFoundError(path)
        return {"train": Dataset(rows)} if (Path(path) / "dataset_dict.json").exists() else Dataset(rows)

    module.Dataset, module.load_from_disk = Dataset, load_from_disk
    return module


def test_a_directory_that_datasets_saved_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(ROWS))
    with pytest.raises(UserError, match="is not a data set that `datasets` saved"):
        read_samples(tmp_path, no_chat)
    (tmp_path / "state.json").write_text("{}")
    assert [one.transcript.tokens for one in read_samples(tmp_path, no_chat)] == [row["tokens"] for row in ROWS]
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match="holds several splits; name the directory of one"):
        read_samples(tmp_path, no_chat)


def test_a_missing_reader_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs datasets; run `pip install 'bebop-rl\[data\]'` or give a JSONL file"):
        read_samples(tmp_path, no_chat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.collect.tasks=[{name: maths}]", "there is no task 'maths'; did you mean math"),
        ("data.collect.tasks=[{name: math, options: {max_step: 2}}]", "unknown key max_step; did you mean max_steps"),
        ("data.file=absent.jsonl", "there is no file absent.jsonl"),
        ("data.per_step=0", "data.per_step should be greater than or equal to 1"),
        ("unroll.deployed=6", "depths is 5 and deployed is 6; train at least as deep as is drafted"),
        ("device=gpu", "device 'gpu' is none PyTorch knows"),
        ("dtype=float8", "dtype 'float8' is unknown"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(directory, tmp_path, change, message):
    config = empty_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=re.escape(message)):
        cli.command(config, overrides(directory, tmp_path, change), False)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_samples(tmp_path / "absent.jsonl", no_chat)
    (tmp_path / "rows.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"rows.jsonl:1 is not JSON"):
        read_samples(tmp_path / "rows.jsonl", no_chat)
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + '\n{"text": "é"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.jsonl:2 is not UTF-8 .byte 10 of the line.; save the file as UTF-8"):
        read_samples(tmp_path / "latin.jsonl", no_chat)
    (tmp_path / "rows.parquet").write_text("nonsense")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_samples(tmp_path / "rows.parquet", no_chat)
    with pytest.raises(UserError, match="has two rows with the same id"):
        read_samples(write_lines(tmp_path / "twice.jsonl", [{**ROWS[0], "id": "a"}] * 2), no_chat)
