"""One row of the batch on the host: what it has emitted and where it must stop."""

from collections.abc import Callable
from dataclasses import dataclass, field

from bebop.engines.base import Completion, DraftStats, Request, StopReason, TokenSource

Decode = Callable[[list[int]], str]
"""Token ids to text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """What a round emitted for one row: the accepted drafts and the token after them.

    The per-token lists have ``num_accepted + 1`` entries. ``draft_logprobs`` and ``overlaps`` have one for every depth
    that was judged: the accepted drafts and, unless all ``num_drafts`` were, the one that was refused.
    """

    tokens: list[int]
    logprobs: list[float]
    raw_logprobs: list[float]
    entropies: list[float]
    draft_logprobs: list[float]
    overlaps: list[float]
    """Empty where they are not measured."""
    num_accepted: int
    num_drafts: int
    finite: bool


@dataclass(slots=True, kw_only=True)
class Row:
    """A completion in the making. ``tokens`` holds prompt and completion; the last one is not in the cache yet."""

    request: Request
    index: int
    num_draft_tokens: int | None
    """K of this row; None = the engine's."""
    max_context: int
    decode: Decode
    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    sources: list[TokenSource] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    draft_logprobs: list[float | None] = field(default_factory=list)
    token_overlaps: list[float | None] = field(default_factory=list)
    stop_reason: StopReason | None = None
    num_waiting: int = 0
    """Positions at the end of the cache whose hidden states wait for the head."""
    rounds: int = 0
    drafted: list[int] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)

    @property
    def num_cached(self) -> int:
        """Positions in the cache; also the position of the pending token."""
        return len(self.tokens) - 1

    def absorb(self, block: Block, version: int) -> int:
        """Take a round's block, up to and including the token that ends the completion; -> tokens taken.

        So many positions are new in the cache: the pending token and all that were taken but the last.
        """
        if not block.finite:
            self.stop_reason = StopReason.NOT_FINITE
            return 0
        self._count(block)
        num_before = len(self.tokens)
        for place, token in enumerate(block.tokens):
            self.tokens.append(token)
            self.logprobs.append(block.logprobs[place])
            self.raw_logprobs.append(block.raw_logprobs[place])
            self.entropies.append(block.entropies[place])
            self.sources.append(_source(block, place))
            self.versions.append(version)
            self.draft_logprobs.append(_at(block.draft_logprobs, place))
            self.token_overlaps.append(_at(block.overlaps, place))
            self.stop_reason = self._stop_after(token)
            if self.stop_reason is not None:
                break
        num_taken = len(self.tokens) - num_before
        self.num_waiting += num_taken
        return num_taken

    def completion(self) -> Completion:
        """The finished record."""
        assert self.stop_reason is not None, "the row is still running"
        return Completion(
            request_id=self.request.id,
            index=self.index,
            tokens=tuple(self.tokens[len(self.request.prompt_tokens) :]),
            logprobs=tuple(self.logprobs),
            raw_logprobs=tuple(self.raw_logprobs),
            entropies=tuple(self.entropies),
            sources=tuple(self.sources),
            versions=tuple(self.versions),
            draft_logprobs=tuple(self.draft_logprobs),
            overlaps=tuple(self.token_overlaps),
            stop_reason=self.stop_reason,
            drafts=DraftStats(
                rounds=self.rounds,
                emitted=len(self.logprobs),
                drafted=tuple(self.drafted),
                reached=tuple(self.reached),
                accepted=tuple(self.accepted),
                overlaps=tuple(self.overlaps),
            ),
        )

    def _count(self, block: Block) -> None:
        self.rounds += 1
        missing = block.num_drafts - len(self.drafted)
        if missing > 0:
            for counts in (self.drafted, self.reached, self.accepted, self.overlaps):
                counts.extend([0] * missing)
        for depth in range(block.num_drafts):
            self.drafted[depth] += 1
            if depth <= block.num_accepted:
                self.reached[depth] += 1
                self.accepted[depth] += depth < block.num_accepted
                self.overlaps[depth] += _at(block.overlaps, depth) or 0.0

    def _stop_after(self, token: int) -> StopReason | None:
        request = self.request
        if token in request.stop_token_ids:
            return StopReason.STOP_TOKEN
        if request.stop_strings and self._ends_with_stop_string():
            return StopReason.STOP_STRING
        if len(self.logprobs) >= request.max_tokens:
            return StopReason.MAX_TOKENS
        if len(self.tokens) >= self.max_context:
            return StopReason.CONTEXT
        return None

    def _ends_with_stop_string(self) -> bool:
        """Whether the newest token completed a stop string; every earlier token was checked when it was new."""
        longest = max(len(text.encode()) for text in self.request.stop_strings)
        # A token spells at least one byte of text, special tokens apart; the margin covers those.
        start = max(len(self.request.prompt_tokens), len(self.tokens) - longest - 8)
        tail = self.decode(self.tokens[start:])
        return any(text in tail for text in self.request.stop_strings)


def _at(values: list[float], place: int) -> float | None:
    """The value at a place; None behind the last."""
    return values[place] if place < len(values) else None


def _source(block: Block, place: int) -> TokenSource:
    if place < block.num_accepted:
        return TokenSource.DRAFTED
    if block.num_drafts == 0:
        return TokenSource.SAMPLED
    return TokenSource.BONUS if block.num_accepted == block.num_drafts else TokenSource.CORRECTED
