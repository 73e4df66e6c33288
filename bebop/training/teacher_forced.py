"""What verification would make of drafts along rollouts, computed exactly (docs/math.md).

A rollout is a sample of the target. Along it, every rule has a chance that the chain's own first k tokens come out as
accepted drafts (``alive``). From these follow the expected accepted drafts of a round at each anchor, and, because a
round begins where the one before it ended, how many rounds the rollout takes.

Shapes: N chains, K depths, V vocabulary, A anchors of one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with

from bebop.core.acceptance import (
    coupling_matches,
    entropy,
    overlap,
    rejection_beats_target_only,
    target_only_acceptance,
)
from bebop.core.sampling import Sampling, distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Laws:
    """Target and draft under one sampling, at every (chain, depth), and the token that the target chose there."""

    target_NKV: Tensor
    draft_NKV: Tensor
    tokens_NK: Tensor

    @property
    def target_token_NK(self) -> Tensor:
        return self._of_token(self.target_NKV)

    @property
    def draft_token_NK(self) -> Tensor:
        return self._of_token(self.draft_NKV)

    @property
    def token_ratio_NK(self) -> Tensor:
        """q(y) / p(y); 0 where rounding left neither any chance, which greedy sampling may meet on ties."""
        return (self.draft_token_NK / self.target_token_NK).nan_to_num(nan=0.0)

    def _of_token(self, probs_NKV: Tensor) -> Tensor:
        return probs_NKV.gather(-1, self.tokens_NK[..., None]).squeeze(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """What a rule does with the drafts of a chain, given that the chain's tokens come out."""

    alive_NK: Tensor
    """Chance that depths 1 to k all come out as accepted drafts."""
    accepted_NK: Tensor
    """Chance over all tokens that draft k is accepted; its sum over k is the expected accepted drafts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Odds:
    """A rule that decides depth by depth."""

    acceptance_NK: Tensor
    """Chance over all tokens that the draft of this depth is accepted, if the ones before it were."""
    survival_NK: Tensor
    """The same, given that the chain's token comes out."""

    @property
    def fate(self) -> Fate:
        alive_NK = self.survival_NK.cumprod(-1)
        before_NK = pad_with(alive_NK[:, :-1], (1, 0), value=1.0)
        return Fate(alive_NK=alive_NK, accepted_NK=self.acceptance_NK * before_NK)


def rejection_odds(laws: Laws) -> Odds:
    survival_NK = laws.token_ratio_NK.clamp(max=1)
    return Odds(acceptance_NK=overlap(laws.target_NKV, laws.draft_NKV), survival_NK=survival_NK)


def rejection_fate(laws: Laws) -> Fate:
    return rejection_odds(laws).fate


def target_only_fate(laws: Laws) -> Fate:
    is_draft_NK = (laws.draft_NKV.argmax(-1) == laws.tokens_NK).double()
    return Odds(acceptance_NK=target_only_acceptance(laws.target_NKV, laws.draft_NKV), survival_NK=is_draft_NK).fate


def coupled_fate(laws: Laws) -> Fate:
    matches_NKV = coupling_matches(laws.target_NKV, laws.draft_NKV)
    of_token_NK = matches_NKV.gather(-1, laws.tokens_NK[..., None]).squeeze(-1)
    return Odds(
        acceptance_NK=matches_NKV.sum(-1), survival_NK=(of_token_NK / laws.target_token_NK).nan_to_num(nan=0.0)
    ).fate


def block_fate(laws: Laws) -> Fate:
    log_ratio_NK = laws.token_ratio_NK.log().cumsum(-1)
    alive_NK = log_ratio_NK.cummin(-1).values.clamp(max=0).exp()
    return Fate(alive_NK=alive_NK, accepted_NK=alive_NK)


FATES: Mapping[str, Callable[[Laws], Fate]] = MappingProxyType(
    {"rejection": rejection_fate, "target_only": target_only_fate, "coupled": coupled_fate, "block": block_fate}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What is asked of every chain."""

    sampling: Sampling
    rules: Sequence[str]
    draft_temperatures: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainFigures:
    """Everything that is asked of a chain, as [N, K] on the CPU, float64."""

    fates: Mapping[str, Fate]
    overlap_NK: Tensor
    target_entropy_NK: Tensor
    """Nats, under the sampling."""
    draft_entropy_NK: Tensor
    prefers_rejection_NK: Tensor
    """1 where rejection accepts more often than target-only: TV(p, q) < 1 - p(argmax q)."""
    at_temperature: Mapping[float, Odds]
    """Rejection with the draft's logits divided by this besides."""

    def picked(self, which_N: Tensor) -> ChainFigures:
        """The figures of some of the chains."""
        return self.zipped(lambda tensors: tensors[0][which_N], [self])

    def zipped(self, combine: Callable[[list[Tensor]], Tensor], parts: Sequence[ChainFigures]) -> ChainFigures:
        """Every figure combined over ``parts``, which were asked the same questions as this one."""

        def of(take: Callable[[ChainFigures], Tensor]) -> Tensor:
            return combine([take(one) for one in parts])

        return ChainFigures(
            fates={
                rule: Fate(
                    alive_NK=of(lambda one, rule=rule: one.fates[rule].alive_NK),
                    accepted_NK=of(lambda one, rule=rule: one.fates[rule].accepted_NK),
                )
                for rule in self.fates
            },
            overlap_NK=of(lambda one: one.overlap_NK),
            target_entropy_NK=of(lambda one: one.target_entropy_NK),
            draft_entropy_NK=of(lambda one: one.draft_entropy_NK),
            prefers_rejection_NK=of(lambda one: one.prefers_rejection_NK),
            at_temperature={
                value: Odds(
                    acceptance_NK=of(lambda one, value=value: one.at_temperature[value].acceptance_NK),
                    survival_NK=of(lambda one, value=value: one.at_temperature[value].survival_NK),
                )
                for value in self.at_temperature
            },
        )


def chain_figures(
    target_logits_NKV: Tensor,
    draft_logits_NKV: Tensor,
    tokens_NK: Tensor,
    questions: Questions,
) -> ChainFigures:
    """All figures of some chains, from full logits in float32 or better."""
    target_NKV = distribution(target_logits_NKV, questions.sampling).double()

    def laws_at(temperature: float) -> Laws:
        draft_NKV = distribution(draft_logits_NKV / temperature, questions.sampling).double()
        return Laws(target_NKV=target_NKV, draft_NKV=draft_NKV, tokens_NK=tokens_NK)

    laws = laws_at(1.0)
    return ChainFigures(
        fates={rule: FATES[rule](laws) for rule in questions.rules},
        overlap_NK=overlap(target_NKV, laws.draft_NKV),
        target_entropy_NK=entropy(target_NKV),
        draft_entropy_NK=entropy(laws.draft_NKV),
        prefers_rejection_NK=rejection_beats_target_only(target_NKV, laws.draft_NKV).double(),
        at_temperature={one: rejection_odds(laws_at(one)) for one in questions.draft_temperatures},
    )


def round_starts(alive_AK: Tensor) -> Tensor:
    """Chance [A] that a round starts at each anchor of a turn, of which the first always starts one.

    A round at anchor a that accepts t drafts emits t + 1 tokens, so the next one starts at a + t + 1; along the
    rollout that happens with chance ``alive_t - alive_{t+1}``. The sum is the expected number of rounds.
    """
    num_anchors, num_depths = alive_AK.shape
    edges = pad_with(pad_with(alive_AK, (1, 0), value=1.0), (0, 1), value=0.0)
    step_AJ = (edges[:, :-1] - edges[:, 1:]).tolist()
    starts = [1.0] + [0.0] * (num_anchors - 1)
    for anchor in range(num_anchors):
        for accepted in range(min(num_depths + 1, num_anchors - 1 - anchor)):
            starts[anchor + accepted + 1] += starts[anchor] * step_AJ[anchor][accepted]
    return torch.tensor(starts, dtype=torch.float64)
