"""The verification rules as the engine uses them: how to draft for a rule, how it judges, what it accepts on average.

Legend: b rows, K draft tokens, J = K + 1, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bebop.core.sampling import draw
from bebop.core.streams import Purpose, RoundStreams, coupling_noise
from bebop.core.verify import Verdict, block, coupled, rejection, target_only
from bebop.errors import UserError

RatioVerify = Callable[[Tensor, Tensor, Tensor, RoundStreams], Verdict]


class Rule(Protocol):
    """Drafting and judging that belong together: a verdict is exact only for drafts proposed by the same rule."""

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        """One draft token [b] from the draft distribution."""
        ...

    def judge(self, draft_bK: Tensor, draft_bKV: Tensor, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        """How many drafts stand, and the token after them."""
        ...

    def overlap(self, draft_bK: Tensor, draft_bKV: Tensor, target_bKV: Tensor) -> Tensor:
        """Mass [b, K] that the target shares with the distribution the draft was taken from."""
        ...


@dataclass(frozen=True, slots=True)
class RatioRule:
    """Drafts are sampled; the ratio of target to draft probability decides (rejection, block)."""

    verify: RatioVerify

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        index_b = torch.full_like(streams.position_B, depth)
        return draw(probs_bV, streams.uniform(Purpose.DRAFT, index_b))

    def judge(self, draft_bK: Tensor, draft_bKV: Tensor, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        return self.verify(draft_bK, draft_bKV, target_bJV, streams)

    def overlap(self, draft_bK: Tensor, draft_bKV: Tensor, target_bKV: Tensor) -> Tensor:
        del draft_bK
        return torch.minimum(draft_bKV, target_bKV).sum(-1)


@dataclass(frozen=True, slots=True)
class TargetOnlyRule:
    """Drafts are the likeliest tokens; the target's probability alone decides."""

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        del streams, depth
        return probs_bV.argmax(-1)

    def judge(self, draft_bK: Tensor, draft_bKV: Tensor, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        del draft_bKV
        return target_only(draft_bK, None, target_bJV, streams)

    def overlap(self, draft_bK: Tensor, draft_bKV: Tensor, target_bKV: Tensor) -> Tensor:
        del draft_bKV
        return target_bKV.gather(2, draft_bK[..., None])[..., 0]


@dataclass(frozen=True, slots=True)
class CouplingRule:
    """Draft and target take the best of the same noise, which belongs to the token's position."""

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        noise_bV = coupling_noise(streams.seed_B, streams.position_B + 1 + depth, probs_bV.shape[1])
        return (probs_bV.log() + noise_bV).argmax(-1)

    def judge(self, draft_bK: Tensor, draft_bKV: Tensor, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        del draft_bKV
        steps_J = torch.arange(1, target_bJV.shape[1] + 1, device=target_bJV.device)
        noise_bJV = coupling_noise(streams.seed_B, streams.position_B[:, None] + steps_J, target_bJV.shape[2])
        return coupled(draft_bK, target_bJV, noise_bJV)

    def overlap(self, draft_bK: Tensor, draft_bKV: Tensor, target_bKV: Tensor) -> Tensor:
        del draft_bK
        return torch.minimum(draft_bKV, target_bKV).sum(-1)


_RULES: dict[str, Rule] = {
    "rejection": RatioRule(rejection),
    "block": RatioRule(block),
    "target_only": TargetOnlyRule(),
    "coupled": CouplingRule(),
}


def rule_named(name: str) -> Rule:
    """The rule of that name; UserError naming the ones there are."""
    if name not in _RULES:
        raise UserError(f"there is no verification rule {name!r}; choose one of {', '.join(_RULES)}")
    return _RULES[name]
