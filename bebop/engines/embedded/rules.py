"""The verification rules as the engine uses them: how to draft for a rule, how it judges, what it accepts on average.

Legend: b rows, K draft tokens, J = K + 1, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bebop.core.sampling import draw
from bebop.core.streams import Purpose, RoundStreams, coupling_noise
from bebop.core.verify import Verdict, block, couple, coupled, rejection, target_only
from bebop.errors import UserError

RatioVerify = Callable[[Tensor, Tensor, Tensor, RoundStreams, Tensor | None], Verdict]


class Drafts(NamedTuple):
    """Drafted tokens, the distributions they were proposed from, and each row's K where rows differ."""

    tokens_bK: Tensor
    probs_bKV: Tensor
    lengths_b: Tensor | None


class Rule(Protocol):
    """Drafting and judging that belong together: a verdict is exact only for drafts proposed by the same rule."""

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        """One draft token [b] from the draft distribution."""
        ...

    def judge(self, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        """How many drafts stand, and the token after them."""
        ...

    def overlap(self, drafts: Drafts, target_bKV: Tensor) -> Tensor:
        """Mass [b, K] that the target shares with the distribution the draft was taken from."""
        ...


@dataclass(frozen=True, slots=True)
class RatioRule:
    """Drafts are sampled; the ratio of target to draft probability decides (rejection, block)."""

    verify: RatioVerify

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        index_b = torch.full_like(streams.position_B, depth)
        return draw(probs_bV, streams.uniform(Purpose.DRAFT, index_b))

    def judge(self, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        return self.verify(drafts.tokens_bK, drafts.probs_bKV, target_bJV, streams, drafts.lengths_b)

    def overlap(self, drafts: Drafts, target_bKV: Tensor) -> Tensor:
        return torch.minimum(drafts.probs_bKV, target_bKV).sum(-1)


@dataclass(frozen=True, slots=True)
class TargetOnlyRule:
    """Drafts are the likeliest tokens; the target's probability alone decides."""

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        del streams, depth
        return probs_bV.argmax(-1)

    def judge(self, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        return target_only(drafts.tokens_bK, None, target_bJV, streams, drafts.lengths_b)

    def overlap(self, drafts: Drafts, target_bKV: Tensor) -> Tensor:
        return target_bKV.gather(2, drafts.tokens_bK[..., None])[..., 0]


@dataclass(frozen=True, slots=True)
class CouplingRule:
    """Draft and target take the best of the same noise, which belongs to the token's position."""

    def propose(self, probs_bV: Tensor, streams: RoundStreams, depth: int) -> Tensor:
        noise_bV = coupling_noise(streams.seed_B, streams.position_B + 1 + depth, probs_bV.shape[1])
        return couple(probs_bV, noise_bV)

    def judge(self, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        steps_J = torch.arange(1, target_bJV.shape[1] + 1, device=target_bJV.device)
        noise_bJV = coupling_noise(streams.seed_B, streams.position_B[:, None] + steps_J, target_bJV.shape[2])
        return coupled(drafts.tokens_bK, target_bJV, noise_bJV, drafts.lengths_b)

    def overlap(self, drafts: Drafts, target_bKV: Tensor) -> Tensor:
        return torch.minimum(drafts.probs_bKV, target_bKV).sum(-1)


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
