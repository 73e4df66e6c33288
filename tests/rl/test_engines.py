"""From settings to an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from bebop.core.sampling import Sampling
from bebop.engines.base import Request
from bebop.engines.embedded import EmbeddedEngine
from bebop.engines.vllm import VllmOptions
from bebop.models.policy import load_policy
from bebop.rl import engines
from bebop.rl.config import MTPConfig, RolloutConfig
from bebop.rl.engines import TimedEngine, open_engine
from bebop.rl.records import Busy

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


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


class SlowEngine:
    """Takes all requests that are ready, needs a second, and hands out one completion after the other."""

    max_context = 10

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def stream(self, requests: Iterable[Request | None]) -> Iterator[str]:
        source, owed = iter(requests), 0
        while True:
            for request in source:
                if request is None:
                    break
                owed += 1
            else:
                if not owed:
                    return
            if owed:
                self._clock.passes(1.0)
                owed -= 1
                yield "completion"


def test_an_engine_is_busy_while_it_owes_completions_and_not_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(engines, "time", clock)
    request = Request(id="a", prompt_tokens=(1,), max_tokens=1, sampling=Sampling(), seed=0)

    def requests() -> Iterator[Request | None]:
        clock.passes(50)
        yield request
        yield request
        yield None
        for _ in range(3):
            clock.passes(10)
            yield None
        yield request

    engine = TimedEngine(SlowEngine(clock))  # type: ignore[arg-type]
    found = []
    for _ in engine.stream(requests()):
        clock.passes(5)
        found.append(engine.take_busy())
    assert found == [Busy(seconds=1, row_seconds=2), Busy(seconds=1, row_seconds=1), Busy(seconds=1, row_seconds=1)]
