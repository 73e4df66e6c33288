"""`bebop policy stitch`: a head changes place, nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import edit_json, load_tensors, make_policy, read_raw, rewrite
from transformers import PreTrainedModel
from typer.testing import CliRunner

from bebop.cli.policy import policy_app
from bebop.errors import UserError
from bebop.models.contracts import HeadOptions
from bebop.models.policy import load_policy, save_policy
from bebop.models.stitch import stitch

NATIVE = ("qwen3_5", "qwen3_5_moe", "qwen3_next", "mimo", "deepseek_v3", "glm4_moe")


def two_policies(name: str, tmp_path: Path, *, num_shards: int = 1) -> tuple[Path, Path]:
    """A base and a policy with another backbone and another head."""
    base, other = tmp_path / "base", tmp_path / "other"
    save_policy(make_policy(name), base)
    rewrite(base, load_tensors(base), num_shards=num_shards)
    save_policy(make_policy(name, seed=1).with_head_trained_here(), other)
    return base, other


def is_head(key: str) -> bool:
    own = key.startswith(("mtp.", "model.mtp_layers.", "model.layers.2.", "eagle/"))
    return own and not key.endswith(("embed_tokens.weight", "shared_head.head.weight"))


@pytest.mark.parametrize(("name", "num_shards"), [(name, 1) for name in (*NATIVE, "llama")] + [("qwen3_5", 3)])
def test_the_head_is_the_others_and_the_rest_is_bases(name: str, num_shards: int, tmp_path: Path) -> None:
    base, other = two_policies(name, tmp_path, num_shards=num_shards)
    report = stitch(base, other, tmp_path / "out")
    raw = {path: read_raw(tmp_path / path) for path in ("base", "other", "out")}
    assert raw["out"] == {key: raw["other" if is_head(key) else "base"][key] for key in raw["base"]}
    assert report.num_head_tensors == sum(map(is_head, raw["out"]))
    stitched, theirs, ours = (load_policy(tmp_path / path) for path in ("out", "other", "base"))
    assert stitched.fingerprint.head == theirs.fingerprint.head != ours.fingerprint.head
    assert stitched.fingerprint.backbone == ours.fingerprint.backbone
    assert stitched.head_trained_on == theirs.fingerprint.backbone


@pytest.mark.parametrize("name", ["qwen3_5", "llama"])
def test_what_a_head_may_draft_goes_with_it(name: str, tmp_path: Path) -> None:
    base, other = two_policies(name, tmp_path)
    save_policy(replace(load_policy(other), draft_vocabulary=(2, 5, 60)), tmp_path / "few")
    assert load_policy(tmp_path / "few").draft_vocabulary == (2, 5, 60)
    stitch(base, tmp_path / "few", tmp_path / "out")
    assert load_policy(tmp_path / "out").draft_vocabulary == (2, 5, 60)
    stitch(tmp_path / "out", other, tmp_path / "again")
    assert load_policy(tmp_path / "again").draft_vocabulary is None


def test_no_backbone_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = two_policies("qwen3_5", tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    stitch(base, other, tmp_path / "out")


def test_a_head_that_was_lost_is_put_back_from_a_file_of_its_own(tmp_path: Path) -> None:
    base, _ = two_policies("qwen3_5", tmp_path, num_shards=2)
    whole = read_raw(base)
    tensors = load_tensors(base)
    save_file({k: t for k, t in tensors.items() if k.startswith("mtp.")}, tmp_path / "head.safetensors")
    rewrite(base, {k: t for k, t in tensors.items() if not k.startswith("mtp.")}, num_shards=2)
    (base / "bebop.json").unlink()
    with pytest.raises(UserError, match="announces an MTP head"):
        load_policy(base)
    stitch(base, tmp_path / "head.safetensors", tmp_path / "out")
    assert read_raw(tmp_path / "out") == whole
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(whole)
    assert index["weight_map"]["mtp.fc.weight"] == "model-mtp.safetensors"
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())


def test_a_shard_that_held_only_the_former_head_goes_with_it(tmp_path: Path) -> None:
    """The new head has another expert layout, so its names are others: no stale expert may stay behind."""
    base, other = two_policies("qwen3_5_moe", tmp_path)
    fused = load_tensors(base)
    split = {k: t for k, t in fused.items() if not (k.startswith("mtp.") and ".experts." in k)}
    for part, rows in (("gate", slice(0, 12)), ("up", slice(12, 24))):
        for expert, one in enumerate(fused["mtp.layers.0.mlp.experts.gate_up_proj"]):
            split[f"mtp.layers.0.mlp.experts.{expert}.{part}_proj.weight"] = one[rows].clone()
    for expert, one in enumerate(fused["mtp.layers.0.mlp.experts.down_proj"]):
        split[f"mtp.layers.0.mlp.experts.{expert}.down_proj.weight"] = one.clone()
    rewrite(base, split)
    report = stitch(base, other, tmp_path / "out")
    assert report.num_dropped == 12
    assert {key for key in read_raw(tmp_path / "out") if key.startswith("mtp.")} == {
        key for key in read_raw(other) if key.startswith("mtp.")
    }


def test_an_eagle_draft_directory_is_what_vllm_expects(tmp_path: Path) -> None:
    base, other = two_policies("llama", tmp_path)
    draft = other / "eagle"
    config = json.loads((draft / "config.json").read_text())
    assert config["architectures"] == ["EagleLlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["num_hidden_layers"] == 1
    report = stitch(base, draft, tmp_path / "out")
    assert load_policy(tmp_path / "out").fingerprint.head == load_policy(other).fingerprint.head
    assert report.trained_on == load_policy(other).fingerprint.backbone
    edit_json(draft / "config.json", hidden_size=64)
    with pytest.raises(UserError, match="hidden_size=64 where the backbone has 32"):
        stitch(base, draft, tmp_path / "again")


@pytest.mark.parametrize("link", [False, True])
def test_untouched_shards_are_linked_only_on_request(link: bool, tmp_path: Path) -> None:
    base, other = two_policies("llama", tmp_path)
    stitch(base, other, tmp_path / "out", link=link)
    one, two = ((tmp_path / path / "model.safetensors").stat().st_ino for path in ("base", "out"))
    assert (one == two) is link


def test_a_head_of_another_architecture_or_size_is_refused(tmp_path: Path) -> None:
    base, _ = two_policies("qwen3_5", tmp_path)
    save_policy(make_policy("mimo"), tmp_path / "mimo")
    with pytest.raises(UserError, match="speaks of a mimo head"):
        stitch(base, tmp_path / "mimo", tmp_path / "out")
    (tmp_path / "mimo" / "bebop.json").unlink()
    with pytest.raises(UserError, match=r"holds no qwen3_5 head: there is no mtp\.fc\.weight"):
        stitch(base, tmp_path / "mimo", tmp_path / "out")
    save_file({"mtp.fc.weight": torch.zeros(8, 16)}, tmp_path / "small.safetensors")
    with pytest.raises(UserError, match=r"mtp\.fc\.weight \[8, 16\] instead of \[32, 64\]"):
        stitch(base, tmp_path / "small.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_is_never_overwritten(tmp_path: Path) -> None:
    base, other = two_policies("qwen3_5", tmp_path)
    before = read_raw(base)
    with pytest.raises(UserError, match="exists"):
        stitch(base, other, base)
    assert read_raw(base) == before


def test_options_travel_with_the_head(tmp_path: Path) -> None:
    save_policy(make_policy("mimo"), tmp_path / "base")
    save_policy(make_policy("mimo", options=HeadOptions(input_norm="post")), tmp_path / "other")
    stitch(tmp_path / "base", tmp_path / "other", tmp_path / "out")
    contracts = [load_policy(tmp_path / path).contract for path in ("base", "other", "out")]
    assert [contract.input_norm for contract in contracts if contract] == ["pre", "post", "post"]
    chosen = load_policy(tmp_path / "out", options=HeadOptions(input_norm="pre")).contract
    assert chosen is not None and chosen.input_norm == "pre"


def test_the_command_stitches_and_shows(tmp_path: Path) -> None:
    base, other = two_policies("qwen3_5", tmp_path)
    runner = CliRunner()
    done = runner.invoke(policy_app, ["stitch", str(base), str(other), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "15 tensors of a qwen3_5 head, trained on backbone" in done.output.replace("\n", " ")
    shown = json.loads(runner.invoke(policy_app, ["show", str(tmp_path / "out"), "--json"]).output)
    assert (shown["contract"], shown["num_head_tensors"]) == ("qwen3_5", 15)
    assert shown["head_provenance"].startswith("trained on another backbone")
    assert shown["fingerprint"]["head"] == load_policy(other).fingerprint.head
    shown = json.loads(runner.invoke(policy_app, ["show", str(other), "--json"]).output)
    assert shown["head_provenance"] == "trained on this backbone"
    table = runner.invoke(policy_app, ["show", str(other)]).output
    assert "trained on this backbone" in table and shown["fingerprint"]["backbone"] in table
