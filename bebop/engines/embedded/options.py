"""Settings of the embedded engine."""

from dataclasses import dataclass
from typing import Literal

from bebop.errors import UserError

MAX_DRAFT_TOKENS = 16
"""Largest K: deeper drafts are never accepted often enough to pay, and windows stay narrow."""

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedOptions:
    """How the engine drafts, verifies and fits into memory.

    ``num_draft_tokens`` is K; 0 decodes without the head; "auto" chooses K per round, at most ``max_draft_tokens``.
    ``recompute_cache`` says what new weights do to rows in flight: True runs their tokens again, False keeps the
    keys and states of the old weights. ``measure_overlap=False`` leaves out the overlap statistics.
    """

    rule: str = "rejection"
    num_draft_tokens: int | Literal["auto"] = 3
    max_draft_tokens: int = 5
    max_rows: int = 64
    max_context: int | None = None
    """Positions a row may have; None takes the policy's own limit."""
    prefill_tokens: int = 8192
    """Prompt tokens (with padding) that one prefill forward takes at most, where a single prompt allows it."""
    draft_memory: int = 64 * MIB
    """Bytes for the draft distributions of a round; above it they are computed again from the draft's hidden states."""
    verify_memory: int = 256 * MIB
    """Bytes for the float32 distributions that are verified at a time; rows are verified in chunks that fit."""
    kept_memory: int = 256 * MIB
    """Bytes for recent prompts and for conversations that may go on (``Request.keep_cache``); 0 keeps none."""
    recompute_cache: bool = True
    measure_overlap: bool = True
    lean: bool = True
    """Decode by lean layers where there are any, which keep a copy of their matrices; False runs transformers' modules,
    the reference."""
    draft_vocabulary: bool = True
    """Draft from the head's own vocabulary where it has one; False drafts from the policy's whole vocabulary."""
    synchronise: bool = False
    """Wait for the accelerator at every phase, for a truthful time split; costs speed."""

    @property
    def draft_limit(self) -> int:
        """The largest K a round may have; 0 = the head is not used."""
        if self.num_draft_tokens == 0:
            return 0
        if self.num_draft_tokens == "auto":
            return self.max_draft_tokens
        return max(self.num_draft_tokens, self.max_draft_tokens)

    def __post_init__(self) -> None:
        fixed = isinstance(self.num_draft_tokens, int)
        if not fixed and self.num_draft_tokens != "auto":
            raise UserError(f"num_draft_tokens is {self.num_draft_tokens!r}; give a number of tokens or 'auto'")
        limits = {"max_draft_tokens": self.max_draft_tokens} | (
            {"num_draft_tokens": self.num_draft_tokens} if fixed else {}
        )
        for name, value in limits.items():
            if not 0 <= int(value) <= MAX_DRAFT_TOKENS:
                raise UserError(f"{name} is {value}; the engine drafts 0 to {MAX_DRAFT_TOKENS} tokens")
        for name in ("max_rows", "prefill_tokens", "draft_memory", "verify_memory"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.kept_memory < 0:
            raise UserError(f"kept_memory is {self.kept_memory}; it must be 0 or more")
