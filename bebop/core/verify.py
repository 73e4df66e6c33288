"""Speculative verification: which drafted tokens survive, and which token comes next. The output law is the target's.

p is the target's distribution and q the one the draft token was drawn from, both after the same sampling settings
(`core.sampling`). A ratio rule is two things and nothing else:

* `Chances`: a chance for every drafted token to be accepted and a scale for every place the round may end at;
* what follows the accepted prefix: ``leftover(p, q, scale)``, weights proportional to the positive part of
  scale * p - q, where q is empty after the last draft (so that the bonus token is the ordinary case).

The samplers below toss a coin per chance and draw one token; the enumeration tests sum over the same chances and
leftovers. Nothing is read back from the device.

==============  ==========================================  ==========================  =======
rule            chance of draft k                           accepted length             source
==============  ==========================================  ==========================  =======
`target_only`   p(y), y deterministic (its q is a one-hot)  leading run of successes    P 1
`rejection`     min(1, p(y) / q(y))                         leading run of successes    arXiv 2211.17192, P 2
`block`         h_k, from the whole prefix                  the last success            arXiv 2403.10444
`coupled`       none: draft equals the target's own draw    leading run of equalities   arXiv 2408.07978
==============  ==========================================  ==========================  =======

Shape letters: B rows, K drafts, J = K + 1 target positions, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bebop.core.distributions import Distributions, OneHot, as_distributions, widen
from bebop.core.sampling import draw
from bebop.core.streams import Purpose, UniformSource, as_source

Rng = torch.Generator | UniformSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The end of a round: row b emits its first ``num_accepted_B[b]`` drafts, then ``next_token_B[b]``. int64, [B]."""

    num_accepted_B: Tensor
    next_token_B: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round is verified from. Depths at or past a row's `num_drafts_B` are padding and may hold anything."""

    draft_tokens_BK: Tensor
    draft: Distributions
    target: Distributions
    num_drafts_B: Tensor

    @property
    def is_draft_BK(self) -> Tensor:
        """Which depths hold a draft."""
        return torch.arange(self.draft_tokens_BK.shape[1], device=self.num_drafts_B.device) < self.num_drafts_B[:, None]

    def ratios(self) -> Tensor:
        """p(y) / q(y) [B, K]; 0 in padding and where q(y) = 0, which no draw from q can give."""
        is_draft_BK = self.is_draft_BK
        tokens_BK = self.draft_tokens_BK.masked_fill(~is_draft_BK, 0)
        draft_BK = self.draft.chosen(tokens_BK).masked_fill(~is_draft_BK, 0)
        return (self.target.chosen(tokens_BK) / draft_BK).masked_fill(draft_BK == 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chances:
    """What a rule makes of a round: the drafts' chances [B, K] and the scales [B, J] of the J possible leftovers."""

    accept_BK: Tensor
    scale_BJ: Tensor


@dataclass(frozen=True, slots=True)
class RatioRule:
    """A rule as its chances and the way coins [B, K] become an accepted length [B]."""

    chances: Callable[[Round], Chances]
    count: Callable[[Tensor], Tensor]

    def __call__(self, round_: Round, rng: Rng) -> Verdict:
        """One sample of the round's end."""
        coins = as_source(rng)
        chances = self.chances(round_)
        B, K = chances.accept_BK.shape
        depth_BK = torch.arange(K, device=chances.accept_BK.device).expand(B, K)
        num_accepted_B = self.count(coins.uniform(Purpose.ACCEPT, depth_BK) < chances.accept_BK)
        weights_BV = leftover_at(round_, chances, num_accepted_B)
        next_token_B = draw(weights_BV, coins.uniform(Purpose.LEFTOVER, num_accepted_B))
        return Verdict(num_accepted_B=num_accepted_B, next_token_B=next_token_B)


def rejection_chances(round_: Round) -> Chances:
    """min(1, p(y) / q(y)), whatever came before; scale 1."""
    accept_BK = round_.ratios().clamp(max=1)
    return Chances(accept_BK=accept_BK, scale_BJ=accept_BK.new_ones(accept_BK.shape[0], accept_BK.shape[1] + 1))


def block_chances(round_: Round) -> Chances:
    """The chances h and scales b of block verification (Algorithm 2 of arXiv 2403.10444).

    b_0 = 1 and b_i = min(b_{i-1} p_i(y_i) / q_i(y_i), 1). h_i = s_i / (s_i + 1 - b_i) with the leftover's mass
    s_i = sum_v (b_i p_{i+1}(v) - q_{i+1}(v))+. After a row's last draft q is empty, so s = b there and h = b.
    """
    ratio_BK = round_.ratios()
    is_draft_BK = round_.is_draft_BK
    B, K = ratio_BK.shape
    scales_B, accepts_B = [ratio_BK.new_ones(B)], []
    for depth in range(K):
        scale_B = (scales_B[-1] * ratio_BK[:, depth]).clamp(max=1)
        mass_B = scale_B
        if depth + 1 < K:
            excess_BV = scale_B[:, None] * round_.target.depth(depth + 1) - round_.draft.depth(depth + 1)
            mass_B = torch.where(is_draft_BK[:, depth + 1], excess_BV.clamp(min=0).sum(dim=-1), scale_B)
        # A scale of 1 means certainty, also where p and q agree after it and the quotient is 0 / 0.
        accepts_B.append(torch.where(scale_B == 1, 1.0, mass_B / (mass_B + 1 - scale_B)))
        scales_B.append(scale_B)
    accept_BK = torch.stack(accepts_B, dim=1) if accepts_B else ratio_BK
    return Chances(accept_BK=accept_BK, scale_BJ=torch.stack(scales_B, dim=1))


def leftover(target_BV: Tensor, draft_BV: Tensor, scale_B: Tensor) -> Tensor:
    """Weights [B, V] of the token after the accepted prefix: (scale * p - q)+. Its law is these, normalised.

    Where nothing is left (p = q up to rounding, and yet a draft was refused) it is p: any law would do, since such a
    refusal is as likely as the rounding is large.
    """
    excess_BV = (scale_B[:, None] * target_BV).sub_(draft_BV).clamp_(min=0)
    return torch.where(excess_BV.amax(dim=-1, keepdim=True) > 0, excess_BV, target_BV)


def leftover_at(round_: Round, chances: Chances, num_accepted_B: Tensor) -> Tensor:
    """Weights [B, V] of the token that follows `num_accepted_B` accepted drafts."""
    is_bonus_B = num_accepted_B >= round_.num_drafts_B
    draft_BV = torch.where(is_bonus_B[:, None], 0, round_.draft.row(num_accepted_B))
    scale_B = chances.scale_BJ.gather(1, num_accepted_B[:, None]).squeeze(1)
    return leftover(round_.target.row(num_accepted_B), draft_BV, scale_B)


def leading_run(is_accepted_BK: Tensor) -> Tensor:
    """The number [B] of successes before the first failure."""
    return is_accepted_BK.long().cumprod(dim=1).sum(dim=1)


def last_success(is_accepted_BK: Tensor) -> Tensor:
    """The number [B] of depths up to and including the last success; 0 where there is none."""
    return is_accepted_BK.shape[1] - leading_run(~is_accepted_BK.flip(1))


REJECTION = RatioRule(rejection_chances, leading_run)
BLOCK = RatioRule(block_chances, last_success)


def rejection(
    draft_tokens_BK: Tensor,
    draft_probs_BKV: Tensor | Distributions,
    target_probs_BJV: Tensor | Distributions,
    rng: Rng,
    num_drafts_B: Tensor | None = None,
) -> Verdict:
    """Probabilistic rejection sampling (P 2; arXiv 2211.17192). Drafts must have been drawn from `draft_probs`.

    Args: tokens int64; probabilities of any float dtype, J = K + 1; `num_drafts_B` for rows that drafted fewer than K.
    """
    return REJECTION(_round(draft_tokens_BK, draft_probs_BKV, target_probs_BJV, num_drafts_B), rng)


def block(
    draft_tokens_BK: Tensor,
    draft_probs_BKV: Tensor | Distributions,
    target_probs_BJV: Tensor | Distributions,
    rng: Rng,
    num_drafts_B: Tensor | None = None,
) -> Verdict:
    """Block verification (arXiv 2403.10444): never fewer accepted tokens than `rejection`. Arguments as there.

    A coin that failed may be why a *shorter* prefix stands, so coins must be fresh in every round (see `core.streams`).
    """
    return BLOCK(_round(draft_tokens_BK, draft_probs_BKV, target_probs_BJV, num_drafts_B), rng)


def target_only(
    draft_tokens_BK: Tensor,
    draft_probs_BKV: Tensor | Distributions | None,
    target_probs_BJV: Tensor | Distributions,
    rng: Rng,
    num_drafts_B: Tensor | None = None,
) -> Verdict:
    """Target-only acceptance (P 1): rejection with a one-hot q. Drafts must be deterministic, as an argmax is.

    `draft_probs_BKV` is not read: a deterministic draft comes from the one-hot at itself, whatever the head thought.
    """
    del draft_probs_BKV
    tokens_BK = draft_tokens_BK
    if num_drafts_B is not None:
        is_padding_BK = torch.arange(tokens_BK.shape[1], device=tokens_BK.device) >= num_drafts_B[:, None]
        tokens_BK = tokens_BK.masked_fill(is_padding_BK, 0)
    target = as_distributions(target_probs_BJV)
    one_hot = OneHot(tokens_BK, num_tokens=target.depth(0).shape[-1])
    return REJECTION(_round(tokens_BK, one_hot, target, num_drafts_B), rng)


def coupled(
    draft_tokens_BK: Tensor,
    target_probs_BJV: Tensor | Distributions,
    gumbel_BJV: Tensor,
    num_drafts_B: Tensor | None = None,
) -> Verdict:
    """Gumbel coupling (arXiv 2408.07978): the target's own draw argmax(log p + G), accepted while the draft equals it.

    Drafts should be ``couple(draft_probs, gumbel)`` with the *same* noise; they decide the speed alone, never the
    tokens, since each emitted token is a function of p and of its position's noise.
    """
    target = as_distributions(target_probs_BJV)
    J = draft_tokens_BK.shape[1] + 1
    target_tokens_BJ = torch.stack([couple(target.depth(j), gumbel_BJV[:, j]) for j in range(J)], dim=1)
    is_equal_BK = draft_tokens_BK == target_tokens_BJ[:, :-1]
    if num_drafts_B is not None:
        is_equal_BK &= torch.arange(J - 1, device=is_equal_BK.device) < num_drafts_B[:, None]
    num_accepted_B = leading_run(is_equal_BK)
    next_token_B = target_tokens_BJ.gather(1, num_accepted_B[:, None]).squeeze(1)
    return Verdict(num_accepted_B=num_accepted_B, next_token_B=next_token_B)


def couple(probs_XV: Tensor, gumbel_XV: Tensor) -> Tensor:
    """The token [X] that noise picks: argmax(log p + G). Its law is p; close distributions mostly agree on it.

    The logarithm of 0 is slow on CPUs, so p is held at or above the smallest normal number. Noise lies between -4 and
    45 (`core.streams.gumbel`): it cannot lift log p = -87 above the likeliest token of any vocabulary under e^38.
    """
    probs_XV = widen(probs_XV)
    return probs_XV.clamp(min=torch.finfo(probs_XV.dtype).tiny).log_().add_(gumbel_XV).argmax(dim=-1)


# The rules that are called alike. `coupled` is no member: it takes noise in place of q and coins.
RULES: Mapping[str, Callable[..., Verdict]] = MappingProxyType(
    {"target_only": target_only, "rejection": rejection, "block": block}
)


def _round(
    draft_tokens_BK: Tensor,
    draft_probs_BKV: Tensor | Distributions,
    target_probs_BJV: Tensor | Distributions,
    num_drafts_B: Tensor | None,
) -> Round:
    B, K = draft_tokens_BK.shape
    if num_drafts_B is None:
        num_drafts_B = torch.full((B,), K, device=draft_tokens_BK.device)
    return Round(
        draft_tokens_BK=draft_tokens_BK,
        draft=as_distributions(draft_probs_BKV),
        target=as_distributions(target_probs_BJV),
        num_drafts_B=num_drafts_B,
    )
