"""vLLM's acceptance counters in our definitions, under both names.

vLLM's per-position counter is unconditional: rounds in which the drafts up to that position were accepted, over all
rounds. Ours is conditional: over the rounds in which the depth before was accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from bebop.engines.base import DraftStats
from bebop.errors import UserError

_SAMPLE = re.compile(r"^vllm:spec_decode_num_(?P<name>\w+?)(?:_total)?(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)\s*$")
_POSITION = re.compile(r'position="(\d+)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecCounters:
    """``vllm:spec_decode_num_*``: cumulative, over all requests of an engine."""

    drafts: int = 0
    """Verification rounds."""
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()

    @classmethod
    def of_text(cls, lines: Iterable[str]) -> SpecCounters:
        """From the text of a server's ``/metrics``; engines behind one server are added up."""
        totals: dict[str, int] = {}
        positions: dict[int, int] = {}
        for line in lines:
            match = _SAMPLE.match(line)
            if match is None:
                continue
            count = int(float(match["value"]))
            place = _POSITION.search(match["labels"] or "")
            if match["name"] == "accepted_tokens_per_pos" and place:
                positions[int(place[1])] = positions.get(int(place[1]), 0) + count
            else:
                totals[match["name"]] = totals.get(match["name"], 0) + count
        return cls(
            drafts=totals.get("drafts", 0),
            draft_tokens=totals.get("draft_tokens", 0),
            accepted_tokens=totals.get("accepted_tokens", 0),
            accepted_per_position=tuple(positions.get(place, 0) for place in range(max(positions, default=-1) + 1)),
        )

    def __add__(self, other: SpecCounters) -> SpecCounters:
        pairs = zip_longest(self.accepted_per_position, other.accepted_per_position, fillvalue=0)
        return SpecCounters(
            drafts=self.drafts + other.drafts,
            draft_tokens=self.draft_tokens + other.draft_tokens,
            accepted_tokens=self.accepted_tokens + other.accepted_tokens,
            accepted_per_position=tuple(one + another for one, another in pairs),
        )

    def __sub__(self, earlier: SpecCounters) -> SpecCounters:
        """What was counted since ``earlier``."""
        pairs = zip_longest(self.accepted_per_position, earlier.accepted_per_position, fillvalue=0)
        return SpecCounters(
            drafts=self.drafts - earlier.drafts,
            draft_tokens=self.draft_tokens - earlier.draft_tokens,
            accepted_tokens=self.accepted_tokens - earlier.accepted_tokens,
            accepted_per_position=tuple(now - then for now, then in pairs),
        )

    def stats(self) -> DraftStats:
        """In our definitions. UserError where rounds drafted different numbers of tokens: vLLM does not say how many
        reached each position then, and only the totals hold."""
        depth = len(self.accepted_per_position)
        if self.draft_tokens != self.drafts * depth:
            raise UserError(
                f"vLLM counted {self.draft_tokens} draft tokens in {self.drafts} rounds of up to {depth}, and does not "
                "say which positions were left out; take the sums of the completions' own statistics instead"
            )
        return DraftStats(
            rounds=self.drafts,
            emitted=self.drafts + self.accepted_tokens,
            drafted=(self.drafts,) * depth,
            reached=(self.drafts, *self.accepted_per_position)[:depth],
            accepted=self.accepted_per_position,
            overlaps=(float("nan"),) * depth,
        )


def acceptance_metrics(stats: DraftStats) -> dict[str, float]:
    """Acceptance under our names and, after "vllm/", under those of vLLM's logs and benchmarks."""
    drafted, rounds = stats.drafted, stats.rounds
    ours = {"acceptance_rate": stats.acceptance_rate, "accept_length": stats.accept_length}
    theirs = {
        "vllm/draft_acceptance_rate": stats.acceptance_rate,
        "vllm/mean_acceptance_length": stats.accept_length,
        "vllm/num_drafts": float(rounds),
        "vllm/num_draft_tokens": float(stats.num_drafted),
        "vllm/num_accepted_tokens": float(stats.num_accepted),
    }
    for depth, accepted in enumerate(stats.accepted):
        ours[f"conditional@{depth + 1}"] = _ratio(accepted, stats.reached[depth])
        ours[f"survival@{depth + 1}"] = _ratio(accepted, drafted[depth])
        theirs[f"vllm/per_position_acceptance_rate@{depth}"] = _ratio(accepted, rounds)
    return ours | theirs


def _ratio(count: int, total: int) -> float:
    return count / total if total else float("nan")
