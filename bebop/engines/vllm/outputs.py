"""From what vLLM says of a finished request to our records, the same way in process and over HTTP.

vLLM counts verification rounds; its first token of a request comes out of the prefill, from no round. Its per-position
figures are unconditional survival; ours (``DraftStats``) are conditional on the depth before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from bebop.engines.base import Completion, DraftStats, Request, StopReason, TokenSource

Decode = Callable[[list[int]], str]
"""Token ids to text."""

NAN = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One engine step of one request: drafts verified and accepted; a step without drafts emits one token."""

    drafted: int = 0
    accepted: int = 0


PLAIN = Step()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What vLLM returns of one completion. The per-token tuples have the length of ``tokens``.

    ``logprobs`` are vLLM's processed log-probs at the emitted token: of the sampling distribution, but of the unscaled
    logits at temperature 0. ``raw_logprobs`` and ``entropies`` are NaN where the distribution was not recorded. The
    steps emitted all tokens, in this order, and perhaps more in the last, which a stop cut. ``length`` says that
    vLLM ended the completion for its length.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    versions: tuple[int, ...]
    steps: tuple[Step, ...]
    length: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one step of the engine emitted for one completion.

    ``distributions`` holds, for each token, log-probs by token id: at least its own. ``finish`` is vLLM's reason where
    the completion has ended ("stop", "length", "abort"), and ``rounds`` are then all its verification rounds.
    """

    key: str
    tokens: tuple[int, ...]
    distributions: tuple[Mapping[int, float], ...]
    finish: str | None
    rounds: tuple[Step, ...] = ()


def completion_of(request: Request, index: int, sampled: Sampled, decode: Decode | None) -> Completion:
    """The finished record. ``decode`` is needed for requests with stop strings."""
    size, reason = _ending(request, sampled, decode)
    greedy = request.sampling.is_greedy
    steps = list(_steps_of(sampled.steps, size))
    nothing: tuple[None, ...] = (None,) * size
    return Completion(
        request_id=request.id,
        index=index,
        tokens=sampled.tokens[:size],
        logprobs=(0.0,) * size if greedy else sampled.logprobs[:size],
        raw_logprobs=(sampled.logprobs if _is_raw(request) else sampled.raw_logprobs)[:size],
        entropies=(0.0,) * size if greedy else sampled.entropies[:size],
        sources=tuple(_sources(steps))[:size],
        versions=sampled.versions[:size],
        draft_logprobs=nothing,
        overlaps=nothing,
        stop_reason=reason,
        drafts=stats_of_steps(steps, size),
    )


def stats_of_steps(steps: Iterable[Step], emitted: int) -> DraftStats:
    """Sums over the rounds. Where the engine drafts, steps without drafts (the prefill's) are no rounds."""
    steps = list(steps)
    rounds = [step for step in steps if step.drafted] or steps
    depth = max((step.drafted for step in rounds), default=0)
    return DraftStats(
        rounds=len(rounds),
        emitted=emitted,
        drafted=tuple(sum(step.drafted > k for step in rounds) for k in range(depth)),
        reached=tuple(sum(step.drafted > k and step.accepted >= k for step in rounds) for k in range(depth)),
        accepted=tuple(sum(step.accepted > k for step in rounds) for k in range(depth)),
        overlaps=(NAN,) * depth,
    )


def _is_raw(request: Request) -> bool:
    """Whether vLLM's processed log-probs are those of the logits as they are."""
    sampling = request.sampling
    untruncated = sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0
    return sampling.is_greedy or (sampling.temperature == 1 and untruncated)


def _ending(request: Request, sampled: Sampled, decode: Decode | None) -> tuple[int, StopReason]:
    """How many of the tokens are the completion, and why it ends there."""
    for place, logprob in enumerate(sampled.logprobs):
        if math.isnan(logprob):
            return place, StopReason.NOT_FINITE
    if request.stop_strings and (cut := _cut(request, sampled.tokens, decode)) is not None:
        return cut, StopReason.STOP_STRING
    size = len(sampled.tokens)
    if not sampled.length:
        return size, StopReason.STOP_TOKEN
    return size, StopReason.MAX_TOKENS if size >= request.max_tokens else StopReason.CONTEXT


def _cut(request: Request, tokens: tuple[int, ...], decode: Decode | None) -> int | None:
    """Tokens up to and including the first that completes a stop string; None where none does."""
    assert decode is not None, "requests with stop strings are refused where there is no tokenizer"
    if not any(text in decode(list(tokens)) for text in request.stop_strings):
        return None
    for size in range(1, len(tokens) + 1):
        if any(text in decode(list(tokens[:size])) for text in request.stop_strings):
            return size
    return None


def _steps_of(steps: Iterable[Step], size: int) -> Iterator[Step]:
    """The steps that emitted the first ``size`` tokens; tokens that no step accounts for came one by one."""
    emitted = 0
    for step in steps:
        if emitted >= size:
            return
        emitted += step.accepted + 1
        yield step
    yield from [PLAIN] * (size - emitted)


def _sources(steps: Iterable[Step]) -> Iterator[TokenSource]:
    for step in steps:
        yield from [TokenSource.DRAFTED] * step.accepted
        if step.drafted == 0:
            yield TokenSource.SAMPLED
        else:
            yield TokenSource.BONUS if step.accepted == step.drafted else TokenSource.CORRECTED
