"""From settings to an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bebop.engines.embedded import EmbeddedEngine
from bebop.engines.vllm import VllmOptions
from bebop.models.policy import load_policy
from bebop.rl import engines
from bebop.rl.config import MTPConfig, RolloutConfig
from bebop.rl.engines import open_engine

ROLLOUT = RolloutConfig(rows=5, max_context=96, cache_gib=0.5, recompute_cache=False)


def test_the_embedded_engine_gets_its_settings() -> None:
    engine = open_engine(load_policy("tiny"), ROLLOUT, MTPConfig(rule="block", k=2))
    assert isinstance(engine, EmbeddedEngine)
    options = engine.options
    assert (options.rule, options.num_draft_tokens, options.max_rows) == ("block", 2, 5)
    assert (engine.max_context, options.recompute_cache) == (96, False)


def test_vllm_gets_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[VllmOptions] = []
    monkeypatch.setattr(engines, "VllmEngine", lambda path, options: seen.append(options))
    policy = load_policy("tiny", dtype=torch.float32)
    open_engine(policy, ROLLOUT.model_copy(update={"engine": "vllm"}), MTPConfig(mode="none"))
    assert Path(policy.source or "").is_dir()
    wanted = VllmOptions(
        num_draft_tokens=0,
        max_rows=5,
        max_context=96,
        cache_bytes=1 << 29,
        recompute_cache=False,
        dtype="float32",
        record_distribution=True,
    )
    assert seen == [wanted]
