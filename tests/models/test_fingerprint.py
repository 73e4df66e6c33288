"""Fingerprints: equal where the values are, different where one value is."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_models import CASES, load_tensors, make_policy, rewrite

from bebop.errors import UserError
from bebop.models.fingerprint import differing_tensors, tensor_digests
from bebop.models.policy import load_policy, save_policy
from bebop.models.spec import read_spec
from bebop.models.stored_fingerprint import stored_fingerprint


@pytest.mark.parametrize("name", CASES)
def test_disk_memory_and_float_width_agree(name: str, tmp_path: Path) -> None:
    policy = make_policy(name, tied=name in ("qwen3_5", "llama"))
    save_policy(policy, tmp_path / "p")
    assert stored_fingerprint(read_spec(tmp_path / "p")) == policy.fingerprint
    for directory in (tmp_path / "p", tmp_path / "p" / "eagle"):
        if directory.is_dir():
            tensors = load_tensors(directory)
            narrow = {k: t if "e_score" in k else t.bfloat16() for k, t in tensors.items()}
            rewrite(directory, narrow, num_shards=3)  # so that experts are met in another order than they are stacked
    wide, own = load_policy(tmp_path / "p", dtype=torch.float32), load_policy(tmp_path / "p")
    assert (wide.dtype, own.dtype) == (torch.float32, torch.bfloat16)
    assert wide.fingerprint == own.fingerprint == stored_fingerprint(read_spec(tmp_path / "p"))


@pytest.mark.parametrize(
    ("group", "parameter"),
    [
        ("backbone", "model.norm.weight"),
        ("backbone", "model.layers.0.mlp.up_proj.weight"),
        ("embedding", "model.embed_tokens.weight"),
        ("lm_head", "lm_head.weight"),
    ],
)
def test_one_value_changes_one_group(group: str, parameter: str) -> None:
    policy = make_policy("qwen3_5")
    before = policy.fingerprint
    tensor = policy.backbone.get_parameter(parameter)
    with torch.no_grad():
        tensor.view(-1)[-1].add_(1e-3)
    assert policy.fingerprint.differing_groups(before) == (group,)
    assert replace(policy, head=None).fingerprint.head is None


def test_the_tensor_that_differs_is_named() -> None:
    head = make_policy("qwen3_5").head
    assert head is not None
    before = tensor_digests(head.state_dict())
    with torch.no_grad():
        head.fuse.weight[0, 0] += 1e-3
    assert differing_tensors(before, tensor_digests(head.state_dict())) == ["fuse.weight"]
    assert differing_tensors(before, before) == []


def test_tied_weights_have_one_digest() -> None:
    tied, untied = (asdict(make_policy("llama", tied=tied).fingerprint) for tied in (True, False))
    assert tied["embedding"] == tied["lm_head"]
    assert untied["embedding"] != untied["lm_head"]


def test_a_head_remembers_the_backbone_it_was_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_policy(make_policy("qwen3_5").with_head_trained_here(), tmp_path / "p")
    policy = load_policy(tmp_path / "p", strict=True)
    assert policy.head_trained_on == policy.fingerprint.backbone
    with torch.no_grad():
        policy.backbone.get_parameter("model.norm.weight").add_(0.1)
    save_policy(policy, tmp_path / "tuned")
    with caplog.at_level(logging.WARNING):
        tuned = load_policy(tmp_path / "tuned")
    assert "the head was trained on another backbone" in caplog.text
    assert tuned.head_trained_on == policy.head_trained_on != tuned.fingerprint.backbone
    with pytest.raises(UserError, match="trained on another backbone"):
        load_policy(tmp_path / "tuned", strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_of_either_sign_are_one_value(dtype: torch.dtype) -> None:
    digests = tensor_digests({"plus": torch.tensor([0.0, 1.0], dtype=dtype), "minus": torch.tensor([-0.0, 1.0])})
    assert digests["plus"] == digests["minus"]
