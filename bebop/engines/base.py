"""What a rollout engine is asked, what it answers, and the protocol both sides keep.

Every record is frozen and checked where it is born; a person's mistake is a ``UserError`` that names the field.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

import torch

from bebop.core.sampling import Sampling
from bebop.errors import UserError


class TokenSource(Enum):
    """How a token came to be emitted."""

    SAMPLED = "sampled"
    """Sampled from the target in a round without drafts."""
    DRAFTED = "drafted"
    """Proposed by the head and accepted by the verification."""
    CORRECTED = "corrected"
    """Sampled from the leftover distribution after the first rejection of its round."""
    BONUS = "bonus"
    """Sampled from the target after every draft of its round was accepted."""


class StopReason(Enum):
    """Why a completion ended."""

    STOP_TOKEN = "stop_token"
    """A stop token was emitted; it is the completion's last token."""
    STOP_STRING = "stop_string"
    """The token that completed a stop string was emitted; it is the completion's last token."""
    MAX_TOKENS = "max_tokens"
    """The completion has the number of tokens the request allows."""
    CONTEXT = "context"
    """Prompt and completion fill the engine's context."""
    NOT_FINITE = "not_finite"
    """The policy's logits held NaN or infinity at the next position; what was emitted before is sound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and how to continue it.

    The random draws of completion ``c`` depend on ``(seed, c, position)`` alone, so two requests with equal prompt and
    seed give equal tokens. ``num_draft_tokens=None`` takes the engine's setting. Stop tokens and stop strings stay in
    the completion: it ends with the token that completed them.

    Turns of a conversation can share work: with ``keep_cache`` the engine may keep what it holds of prompt and
    completion when the latter ends, and a request that ``continues`` it (by its id) starts there if its prompt begins
    with those tokens and nothing has displaced them. Neither changes a token; an engine is free to ignore both.
    """

    id: str
    prompt_tokens: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    num_draft_tokens: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    num_completions: int = 1
    keep_cache: bool = False
    continues: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise UserError(f"request {self.id!r} has an empty prompt; give at least one prompt token")
        if self.max_tokens < 1:
            raise UserError(f"request {self.id!r} has max_tokens {self.max_tokens}; it must be 1 or more")
        if self.num_completions < 1:
            raise UserError(f"request {self.id!r} has num_completions {self.num_completions}; it must be 1 or more")
        if self.num_draft_tokens is not None and self.num_draft_tokens < 0:
            raise UserError(f"request {self.id!r} has num_draft_tokens {self.num_draft_tokens}; it must be 0 or more")
        if self.keep_cache and self.num_completions > 1:
            raise UserError(
                f"request {self.id!r} keeps the cache of {self.num_completions} completions; "
                "set num_completions to 1, since a continuation names the request alone"
            )
        if "" in self.stop_strings:
            raise UserError(f"request {self.id!r} has an empty stop string; remove it")


def check_prompt(request: Request, vocabulary: int, max_context: int) -> None:
    """UserError for a prompt that a policy with that vocabulary and that context cannot take."""
    length = len(request.prompt_tokens)
    if length >= max_context:
        raise UserError(
            f"request {request.id!r} has a prompt of {length} tokens and the context holds {max_context}; "
            "shorten the prompt or raise max_context"
        )
    if not all(0 <= token < vocabulary for token in request.prompt_tokens):
        raise UserError(
            f"request {request.id!r} has a prompt token outside the vocabulary of {vocabulary}; check the tokenizer"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftStats:
    """Sums and counts over the draft-and-verify rounds of one completion (or, added up, of many).

    Index k of a tuple is depth k + 1. ``reached[k]`` rounds had their first k drafts accepted, so depth k + 1 was
    judged; ``accepted[k]`` of those passed. ``overlaps[k]`` sums ``sum_v min(p(v), q(v))`` over the reached ones:
    divided by ``reached[k]`` it estimates the rejection rule's acceptance at that depth without its coins' noise.
    Rounds are counted whole, also the last one, whose tokens a stop may have cut: ``emitted`` counts what was kept.
    """

    rounds: int = 0
    emitted: int = 0
    drafted: tuple[int, ...] = ()
    reached: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    overlaps: tuple[float, ...] = ()

    def __add__(self, other: "DraftStats") -> "DraftStats":
        return DraftStats(
            rounds=self.rounds + other.rounds,
            emitted=self.emitted + other.emitted,
            drafted=_add(self.drafted, other.drafted),
            reached=_add(self.reached, other.reached),
            accepted=_add(self.accepted, other.accepted),
            overlaps=_add(self.overlaps, other.overlaps),
        )

    @property
    def num_drafted(self) -> int:
        """Draft tokens proposed over all rounds and depths."""
        return sum(self.drafted)

    @property
    def num_accepted(self) -> int:
        """Draft tokens accepted over all rounds and depths."""
        return sum(self.accepted)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; NaN when nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else float("nan")

    @property
    def accept_length(self) -> float:
        """Tokens per round, one plus the accepted drafts, before a stop cuts the last round; NaN without rounds."""
        return 1.0 + self.num_accepted / self.rounds if self.rounds else float("nan")


def _add(left: tuple, right: tuple) -> tuple:
    """Elementwise sum of two tuples of numbers; the shorter is continued with zeros."""
    shorter, longer = sorted((left, right), key=len)
    return tuple(a + b for a, b in zip(shorter, longer, strict=False)) + longer[len(shorter) :]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished continuation; the per-token tuples all have its length.

    ``logprobs`` are the behaviour log-probs: the target's, at the emitted token, under the request's sampling
    distribution (0 at temperature 0). ``raw_logprobs`` are the target's at temperature 1 without truncation.
    ``entropies`` (nats) are those of the sampling distribution. ``versions`` name the weights that sampled each token.

    ``draft_logprobs`` and ``overlaps`` compare the head with the target wherever a token was drafted and judged
    (sources drafted and corrected) and are None elsewhere. The former is the log-probability, under the head's
    distribution after the same sampling settings, of the token that was *emitted*: -inf where that excludes it. The
    latter is ``sum_v min(p(v), q(v))``, the acceptance at that place before the coin is tossed; q is what the draft was
    taken from, so for target-only it is the target's probability of the draft. It is None, too, if not measured.
    """

    request_id: str
    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    sources: tuple[TokenSource, ...]
    versions: tuple[int, ...]
    draft_logprobs: tuple[float | None, ...]
    overlaps: tuple[float | None, ...]
    stop_reason: StopReason
    drafts: DraftStats

    def __post_init__(self) -> None:
        for name in _PER_TOKEN:
            length = len(getattr(self, name))
            assert length == len(self.tokens), f"{length} {name} for {len(self.tokens)} tokens"


_PER_TOKEN = ("logprobs", "raw_logprobs", "entropies", "sources", "versions", "draft_logprobs", "overlaps")


@runtime_checkable
class Engine(Protocol):
    """A sampler of completions whose weights can be replaced while it runs."""

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Every completion of every request, ordered by request, then by completion index."""
        ...

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions as they finish; requests are taken from the iterable only as rows become free."""
        ...

    def load_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace the named backbone (and head) tensors; tokens sampled from now on carry ``version``."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class PolicyEngine(Engine, Protocol):
    """An engine that says how long a context may be."""

    max_context: int
    """Positions of prompt and completion together; a prompt is shorter than that."""
