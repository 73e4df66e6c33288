"""One completion while vLLM samples it: pieces are put together, and what the log-probs say is worked out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from bebop.core.sampling import Sampling
from bebop.engines.base import Request
from bebop.engines.vllm.outputs import NAN, PLAIN, Piece, Sampled, Step


@dataclass(slots=True, kw_only=True)
class Progress:
    """A completion in flight."""

    request: Request
    index: int
    recorded: bool
    """Whether the log-probs of the whole vocabulary come with each token."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    plain: list[bool] = field(default_factory=list)
    """For each engine step, whether it came out of a prefill, with no drafts to verify."""
    starts: bool = True
    """The next step is a prefill: at the start, and after the keys were dropped."""

    def absorb(self, piece: Piece, version: int) -> None:
        """Take a step's tokens."""
        if not piece.tokens:
            return
        self.plain.append(self.starts)
        self.starts = False
        for token, distribution in zip(piece.tokens, piece.distributions, strict=True):
            self.tokens.append(token)
            self.logprobs.append(distribution[token])
            raw, entropy = measures(distribution, token, self.request.sampling) if self.recorded else (NAN, NAN)
            self.raw_logprobs.append(raw)
            self.entropies.append(entropy)
            self.versions.append(version)

    def finish(self, piece: Piece) -> Sampled:
        """Everything, once the last piece was absorbed."""
        return Sampled(
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs),
            raw_logprobs=tuple(self.raw_logprobs),
            entropies=tuple(self.entropies),
            versions=tuple(self.versions),
            steps=interleave(self.plain, piece.rounds),
            length=piece.finish == "length",
        )


def interleave(plain: list[bool], rounds: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps in order: rounds where there were drafts; steps beyond the rounds had none (at the context's end)."""
    waiting = iter(rounds)
    return tuple(PLAIN if is_plain else next(waiting, PLAIN) for is_plain in plain)


def measures(distribution: Mapping[int, float], token: int, sampling: Sampling) -> tuple[float, float]:
    """Raw log-prob (NaN where tokens were cut away) and entropy in nats, out of the whole vocabulary's log-probs.

    The log-probs are those of the sampling distribution; at temperature 0, of the logits as they are.
    """
    logprobs_V = torch.tensor(list(distribution.values()), dtype=torch.float64)
    kept = logprobs_V[logprobs_V > -math.inf]
    entropy = float(-(kept.exp() * kept).sum())
    if sampling.is_greedy:
        return distribution[token], entropy
    if kept.numel() < logprobs_V.numel():
        return NAN, entropy
    scale = sampling.temperature
    return scale * distribution[token] - float(torch.logsumexp(scale * logprobs_V, dim=0)), entropy
