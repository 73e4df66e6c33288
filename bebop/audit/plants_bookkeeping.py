"""Defects of stops, records and weight updates. Each function returns what to replace in the embedded engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from bebop.engines.base import Completion, StopReason
from bebop.engines.embedded import EmbeddedEngine, engine
from bebop.engines.embedded.rows import Block, Row
from bebop.engines.embedded.weights import HEAD_PREFIX, copy_weights
from bebop.models.policy import Policy

Edits = list[tuple[Any, str, Any]]


def no_speculation() -> Edits:
    return [(EmbeddedEngine, "_draft_lengths", lambda self, rows: [0] * len(rows))]


def stop_not_cut() -> Edits:
    return _stops_seen_late({StopReason.STOP_TOKEN, StopReason.STOP_STRING})


def length_not_cut() -> Edits:
    return _stops_seen_late({StopReason.MAX_TOKENS})


def _stops_seen_late(kinds: set[StopReason]) -> Edits:
    """Stops of these kinds take effect at the end of the block in which they occur."""
    absorb, stop_after = Row.absorb, Row._stop_after
    waiting: list[int] = [0]
    missed: list[StopReason] = []

    def absorb_block(self: Row, block: Block, version: int) -> int:
        waiting[0] = len(block.tokens)
        missed.clear()
        return absorb(self, block, version)

    def stop_at_the_end(self: Row, token: int) -> StopReason | None:
        waiting[0] -= 1
        reason = stop_after(self, token)
        if reason not in kinds:
            return reason or (missed[0] if missed and waiting[0] == 0 else None)
        missed.append(reason)
        return missed[0] if waiting[0] == 0 else None

    return [(Row, "absorb", absorb_block), (Row, "_stop_after", stop_at_the_end)]


def draft_logprobs() -> Edits:
    def wrong(done: Completion) -> Completion:
        pairs = zip(done.logprobs, done.draft_logprobs, strict=True)
        return replace(done, logprobs=tuple(own if draft is None else draft for own, draft in pairs))

    return _records(wrong)


def untempered_logprobs() -> Edits:
    return _records(lambda done: replace(done, logprobs=done.raw_logprobs))


def tempered_raw_logprobs() -> Edits:
    return _records(lambda done: replace(done, raw_logprobs=done.logprobs))


def entropy_in_bits() -> Edits:
    return _records(lambda done: replace(done, entropies=tuple(value / math.log(2) for value in done.entropies)))


def _records(change: Callable[[Completion], Completion]) -> Edits:
    original = Row.completion
    return [(Row, "completion", lambda self: change(original(self)))]


def stale_weights() -> Edits:
    return [(engine, "copy_weights", lambda policy, tensors: None)]


def stale_head() -> Edits:
    def copy_backbone(policy: Policy, tensors: Mapping[str, Tensor]) -> None:
        copy_weights(policy, {name: one for name, one in tensors.items() if not name.startswith(HEAD_PREFIX)})

    return [(engine, "copy_weights", copy_backbone)]


def wrong_version() -> Edits:
    original = EmbeddedEngine.load_weights
    return [
        (
            EmbeddedEngine,
            "load_weights",
            lambda self, version, tensors: original(self, max(version - 1, 0), tensors),
        )
    ]
