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


NoiseAt = Callable[[int], Tensor]
"""Depth from 0 to the noise of its proposals: [b], or [b, V] where a rule needs it per token, one depth at a time."""


class Drafts(NamedTuple):
    """Drafted tokens, the distributions they were proposed from, and each row's K where rows differ."""

    tokens_bK: Tensor
    probs_bKV: Tensor
    lengths_b: Tensor | None


class Rule(Protocol):
    """Drafting and judging that belong together: a verdict is exact only for drafts proposed by the same rule."""

    def noise(self, streams: RoundStreams, num_drafts: int, vocabulary: int) -> NoiseAt:
        """What the proposals of a round are drawn by, depth by depth."""
        ...

    def propose(self, probs_bV: Tensor, noise: Tensor) -> Tensor:
        """One draft token [b] from the draft distribution and its depth's noise [b] or [b, V]."""
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

    def noise(self, streams: RoundStreams, num_drafts: int, vocabulary: int) -> NoiseAt:
        del vocabulary
        depths_K = torch.arange(num_drafts, device=streams.seed_B.device)
        uniform_bK = streams.uniform(Purpose.DRAFT, depths_K.expand(len(streams.seed_B), -1))
        return lambda depth: uniform_bK[:, depth]

    def propose(self, probs_bV: Tensor, noise: Tensor) -> Tensor:
        return draw(probs_bV, noise)

    def judge(self, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        if target_bJV.shape[1] == 1:
            return _sample(target_bJV, streams)
        return self.verify(drafts.tokens_bK, drafts.probs_bKV, target_bJV, streams, drafts.lengths_b)

    def overlap(self, drafts: Drafts, target_bKV: Tensor) -> Tensor:
        return torch.minimum(drafts.probs_bKV, target_bKV).sum(-1)


@dataclass(frozen=True, slots=True)
class TargetOnlyRule:
    """Drafts are the likeliest tokens; the target's probability alone decides."""

    def noise(self, streams: RoundStreams, num_drafts: int, vocabulary: int) -> NoiseAt:
        del num_drafts, vocabulary
        return lambda depth: streams.seed_B

    def propose(self, probs_bV: Tensor, noise: Tensor) -> Tensor:
        del noise
        return probs_bV.argmax(-1)

    def judge(self, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        if target_bJV.shape[1] == 1:
            return _sample(target_bJV, streams)
        return target_only(drafts.tokens_bK, None, target_bJV, streams, drafts.lengths_b)

    def overlap(self, drafts: Drafts, target_bKV: Tensor) -> Tensor:
        return target_bKV.gather(2, drafts.tokens_bK[..., None])[..., 0]


@dataclass(frozen=True, slots=True)
class CouplingRule:
    """Draft and target take the best of the same noise, which belongs to the token's position."""

    def noise(self, streams: RoundStreams, num_drafts: int, vocabulary: int) -> NoiseAt:
        del num_drafts
        return lambda depth: coupling_noise(streams.seed_B, streams.position_B + 1 + depth, vocabulary)

    def propose(self, probs_bV: Tensor, noise: Tensor) -> Tensor:
        return couple(probs_bV, noise)

    def judge(self, drafts: Drafts, target_bJV: Tensor, streams: RoundStreams) -> Verdict:
        steps_J = torch.arange(1, target_bJV.shape[1] + 1, device=target_bJV.device)
        noise_bJV = coupling_noise(streams.seed_B, streams.position_B[:, None] + steps_J, target_bJV.shape[2])
        return coupled(drafts.tokens_bK, target_bJV, noise_bJV, drafts.lengths_b)

    def overlap(self, drafts: Drafts, target_bKV: Tensor) -> Tensor:
        return torch.minimum(drafts.probs_bKV, target_bKV).sum(-1)


def _sample(target_b1V: Tensor, streams: RoundStreams) -> Verdict:
    """A round without drafts: every ratio rule comes down to one draw from the target, and no coin is needed."""
    none_b = torch.zeros_like(streams.position_B)
    next_b = draw(target_b1V[:, 0], streams.uniform(Purpose.LEFTOVER, none_b))
    return Verdict(num_accepted_B=none_b, next_token_B=next_b)


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
