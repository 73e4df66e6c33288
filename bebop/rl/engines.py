"""The one place where a setting becomes an engine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from bebop.engines.base import Completion, PolicyEngine, Request
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.engines.vllm import VllmEngine, VllmOptions
from bebop.errors import UserError
from bebop.models.policy import Policy
from bebop.rl.config import MTPConfig, RolloutConfig
from bebop.rl.contract import held_digests
from bebop.rl.records import Busy

_RECORDED_VOCABULARY = 8192
"""Up to this vocabulary vLLM is asked for whole distributions, which entropies come from."""


@runtime_checkable
class HoldsCopies(Protocol):
    """An engine with weights of its own, which reads back what they are."""

    def held_digests(self) -> dict[str, dict[str, str]]: ...


def open_engine(policy: Policy, rollout: RolloutConfig, mtp: MTPConfig) -> PolicyEngine:
    """The engine that ``rollout.engine`` names, drafting as ``mtp`` says.

    The embedded one samples with the policy's own modules, vLLM with those it loads from the policy's directory.
    """
    k = 0 if mtp.mode == "none" else mtp.k
    if rollout.engine == "embedded":
        embedded = EmbeddedOptions(
            rule=mtp.rule,
            num_draft_tokens=k,
            max_rows=rollout.rows,
            max_context=rollout.max_context,
            recompute_cache=rollout.recompute_cache,
            draft_vocabulary=mtp.draft_vocabulary,
        )
        return EmbeddedEngine(policy, embedded)
    if k == "auto":
        raise UserError("mtp.k=auto is the embedded engine's; give a number of draft tokens with rollout.engine=vllm")
    assert policy.source is not None, "a worker loads its policy from a directory"
    options = VllmOptions(
        rule=mtp.rule,
        num_draft_tokens=k,
        max_rows=rollout.rows,
        max_context=rollout.max_context,
        cache_bytes=int(rollout.cache_gib * (1 << 30)),
        recompute_cache=rollout.recompute_cache,
        dtype=str(policy.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        record_distribution=policy.config.vocab_size <= _RECORDED_VOCABULARY,
    )
    return VllmEngine(policy.source, options)


class TimedEngine:
    """An engine that counts the time in which it had something to sample."""

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine
        self.max_context = engine.max_context
        self._busy = Busy()

    def take_busy(self) -> Busy:
        """Since the last call."""
        busy, self._busy = self._busy, Busy()
        return busy

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return self._engine.generate(requests)

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        watch = _Watch(requests)
        completions = self._engine.stream(watch)
        while True:
            watch.start()
            completion = next(completions, None)
            self._busy += watch.stop()
            if completion is None:
                return
            watch.num_sampled -= 1
            yield completion

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        self._engine.load_weights(version, tensors)

    def held_digests(self, policy: Policy) -> dict[str, dict[str, str]]:
        """``contract.held_digests`` of what the engine samples with: its own weights, or the policy's modules."""
        return self._engine.held_digests() if isinstance(self._engine, HoldsCopies) else held_digests(policy)

    def close(self) -> None:
        self._engine.close()


class _Watch:
    """Passes requests on, and measures the time in which the engine does not wait for them with nothing to sample."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._requests = iter(requests)
        self.num_sampled = 0
        """Completions that the engine owes."""
        self._busy = Busy()
        self._busy_since: float | None = None
        """None while the engine is not sampling."""

    def start(self) -> None:
        """The engine is asked for a completion."""
        if self.num_sampled:
            self._busy_since = time.perf_counter()

    def stop(self) -> Busy:
        """It has answered; how busy it was."""
        self._pause()
        busy, self._busy = self._busy, Busy()
        return busy

    def __iter__(self) -> Iterator[Request | None]:
        return self

    def __next__(self) -> Request | None:
        self._pause()
        try:
            request = next(self._requests)
            if request is not None:
                self.num_sampled += request.num_completions
            return request
        finally:
            self.start()

    def _pause(self) -> None:
        if self._busy_since is not None:
            seconds = time.perf_counter() - self._busy_since
            self._busy += Busy(seconds=seconds, row_seconds=seconds * self.num_sampled)
            self._busy_since = None
