"""Defects of drafting, verification and random numbers. Each function returns what to replace in the embedded engine.

Legend: B rows, b rows of a chunk, K draft tokens, J = K + 1, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from bebop.core import verify
from bebop.core.sampling import Sampling, draw, stack_sampling
from bebop.core.streams import Purpose, RoundStreams
from bebop.core.verify import Verdict
from bebop.engines.embedded import EmbeddedEngine, rules, selection
from bebop.engines.embedded.rows import Row
from bebop.engines.embedded.rules import Drafts
from bebop.engines.embedded.scheduler import Scheduler

Edits = list[tuple[Any, str, Any]]
Uniform = Callable[[RoundStreams, Purpose, Tensor], Tensor]

_WEYL = -0x61C8864680B583EB
_GARBAGE = (Sampling(temperature=40.0), Sampling(temperature=0.05), Sampling(top_k=1), Sampling(temperature=6.0))


def shared_noise() -> Edits:
    return _uniform(lambda original: lambda self, purpose, index: original(self, Purpose.DRAFT, index))


def reused_coins() -> Edits:
    def make(original: Uniform) -> Uniform:
        return lambda self, purpose, index: original(
            replace(self, position_B=torch.zeros_like(self.position_B)), purpose, index
        )

    return _uniform(make)


def accept_all() -> Edits:
    def make(original: Uniform) -> Uniform:
        return lambda self, purpose, index: original(self, purpose, index) * (purpose is not Purpose.ACCEPT)

    return _uniform(make)


def one_coin_for_all_rows() -> Edits:
    def make(original: Uniform) -> Uniform:
        return lambda self, purpose, index: original(
            replace(self, seed_B=self.seed_B[:1].expand_as(self.seed_B)), purpose, index
        )

    return _uniform(make)


def wrong_bonus_index() -> Edits:
    original = rules.RatioRule.judge

    def judge(self: rules.RatioRule, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        num_rows, num_drafts = drafts.tokens_bK.shape
        lengths_b = torch.full((num_rows,), num_drafts) if drafts.lengths_b is None else drafts.lengths_b
        rows_b, shifted_bJV = torch.arange(num_rows), target_bJV.clone()
        shifted_bJV[rows_b, lengths_b] = target_bJV[rows_b, (lengths_b - 1).clamp(min=0)]
        return original(self, drafts, shifted_bJV, streams)

    return [(rules.RatioRule, "judge", judge)]


def argmax() -> Edits:
    original = rules.RatioRule.judge

    def judge(self: rules.RatioRule, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        best_bJV = torch.zeros_like(target_bJV).scatter(2, target_bJV.argmax(-1, keepdim=True), 1.0)
        return original(self, drafts, best_bJV, streams)

    return [(rules.RatioRule, "judge", judge)]


def residual_from_target() -> Edits:
    return [(verify, "leftover", lambda target_BV, draft_BV, scale_B: target_BV)]


def another_q() -> Edits:
    return [(rules.RatioRule, "propose", lambda self, probs_bV, noise: draw(probs_bV**1.5, noise))]


def warm_plain_decoding() -> Edits:
    original = rules._sample
    return [(rules, "_sample", lambda target_b1V, streams: original(target_b1V**1.5, streams))]


def stale_settings() -> Edits:
    before: list[Sampling] = []

    def stack(samplings: list[Sampling], device: torch.device) -> object:
        stale = [*before[: len(samplings)], *samplings[len(before) :]]
        before[:] = samplings
        return stack_sampling(stale, device)

    return [(selection, "stack_sampling", stack)]


def ignored_settings() -> Edits:
    return _settings(lambda sampling: sampling if sampling.is_greedy else Sampling())


def no_min_p() -> Edits:
    return _settings(lambda sampling: replace(sampling, min_p=0.0))


def uninitialised_settings() -> Edits:
    """The first token comes alone, as in engines that sample it with the prompt; later ones from other settings."""
    lengths, admit = EmbeddedEngine._draft_lengths, Scheduler.admit

    def draft_lengths(self: EmbeddedEngine, rows: list[Row]) -> list[int]:
        return [k if row.logprobs else 0 for k, row in zip(lengths(self, rows), rows, strict=True)]

    def admit_and_rebuild(self: Scheduler, *arguments: Any) -> bool:
        admit(self, *arguments)
        return True

    def stack(self: selection.Selector, rows: list[Row]) -> object:
        garbage = (_GARBAGE[number % len(_GARBAGE)] for number in count())
        samplings = [
            other if row.logprobs and not row.request.sampling.is_greedy else row.request.sampling
            for row, other in zip(rows, garbage, strict=False)
        ]
        return stack_sampling(samplings, self._device)

    return [
        (EmbeddedEngine, "_draft_lengths", draft_lengths),
        (Scheduler, "admit", admit_and_rebuild),
        (selection.Selector, "_stack", stack),
    ]


def batch_seeds() -> Edits:
    original = selection.Selector.__init__

    def init(self: selection.Selector, *arguments: Any) -> None:
        original(self, *arguments)
        self._seed_B = self._seed_B ^ (torch.arange(len(self._seed_B)) * _WEYL)

    return [(selection.Selector, "__init__", init)]


def unrepeatable_seeds() -> Edits:
    original, generate = selection._seed, EmbeddedEngine.generate
    calls = count()
    current = [0]

    def counted(self: EmbeddedEngine, requests: Any) -> Any:
        current[0] = next(calls)
        return generate(self, requests)

    return [
        (EmbeddedEngine, "generate", counted),
        (selection, "_seed", lambda seed, completion: original(seed + (current[0] << 40), completion)),
    ]


def _uniform(make: Callable[[Uniform], Uniform]) -> Edits:
    return [(RoundStreams, "uniform", make(RoundStreams.uniform))]


def _settings(change: Callable[[Sampling], Sampling]) -> Edits:
    return [
        (selection, "stack_sampling", lambda samplings, device: stack_sampling(list(map(change, samplings)), device))
    ]
