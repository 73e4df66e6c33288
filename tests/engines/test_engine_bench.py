"""Engines side by side: every arm at every batch size, ratios of equal draft lengths."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from bebop.bench import engines as module
from bebop.bench.decode import DecodeBench
from bebop.bench.engines import EngineBench, bench_engines
from bebop.cli.bench_engines import engine_bench, engines_table
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.vllm import VllmOptions
from bebop.errors import UserError
from bebop.models.policy import load_policy
from bebop.models.tiny import tiny_path


@dataclass
class Stub:
    """Stands in for vLLM: the embedded engine under its options."""

    directory: Path
    options: VllmOptions

    def __post_init__(self) -> None:
        options = EmbeddedOptions(num_draft_tokens=self.options.num_draft_tokens, max_rows=self.options.max_rows)
        engine = EmbeddedEngine(load_policy(self.directory), options)
        self.generate, self.close = engine.generate, engine.close


def test_every_arm_is_timed_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VllmEngine", Stub)
    bench = EngineBench(batches=(1, 2), draft_lengths=(0, 2), tokens=4, repetitions=2)
    result = bench_engines(tiny_path(), [(5, 6, 7)], bench, report=lambda _: None)
    for figures in result["batches"].values():
        assert set(figures["arms"]) == {"embedded k0", "embedded k2", "vllm k0", "vllm k2"}
        assert set(figures["embedded_over"]) == {"vllm k0", "vllm k2"}
        assert figures["arms"]["embedded k0"]["accept_length"] is None
        assert figures["arms"]["embedded k2"]["accept_length"] >= 1
    assert engines_table(result).row_count == 8


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="no engine 'sglang'"):
        engine_bench("embedded,sglang", DecodeBench())
    with pytest.raises(UserError, match="two engines"):
        engine_bench("vllm", DecodeBench())
    with pytest.raises(UserError, match="auto"):
        engine_bench("embedded,vllm", DecodeBench(draft_lengths=(0, "auto")))
