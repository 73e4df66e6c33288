"""What the engine has done so far, as sums and counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bebop.engines.embedded.clock import PhaseClock
from bebop.engines.embedded.draft_length import AutoDraftLength
from bebop.engines.embedded.prompts import Prefiller
from bebop.engines.embedded.rows import Block


@dataclass(kw_only=True, slots=True)
class EngineReport:
    """Sums over all rounds; ``seconds`` by phase, memory in bytes.

    ``draft_bytes`` is the most that draft distributions, or the hidden states they are computed from, took in a round.
    ``kept_bytes`` are those of prompts and conversations kept for later requests; ``reused_tokens`` counts the prompt
    tokens that were found there. ``row_rounds`` counts a round once per row in it: tokens per row and round is
    ``tokens / row_rounds``.
    """

    rounds: int = 0
    row_rounds: int = 0
    tokens: int = 0
    draft_bytes: int = 0
    cache_bytes: int = 0
    kept_bytes: int = 0
    reused_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    round_costs: dict[int, dict[int, float]] = field(default_factory=dict)
    """Measured seconds per round by batch size and draft length; empty unless the draft length is "auto"."""

    def add_round(self, draft_bytes: int, blocks: Sequence[Block]) -> None:
        """Count a round before stops cut its blocks."""
        self.rounds += 1
        self.row_rounds += len(blocks)
        self.tokens += sum(len(block.tokens) for block in blocks)
        self.draft_bytes = max(self.draft_bytes, draft_bytes)

    def with_state(self, clock: PhaseClock, prefiller: Prefiller, auto: AutoDraftLength | None) -> "EngineReport":
        """A copy that also has the clock, the memory and the cost table."""
        return replace(
            self,
            cache_bytes=prefiller.cache_bytes,
            kept_bytes=prefiller.contexts.num_bytes,
            reused_tokens=prefiller.num_reused,
            seconds={phase.value: seconds for phase, seconds in clock.seconds.items()},
            round_costs=auto.costs.as_dict() if auto else {},
        )
