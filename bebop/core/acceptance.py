"""How much of a draft survives: chances from distributions, expectations from on-policy tokens, counts from rounds.

p is the target's distribution and q the draft's, both under the request's sampling (`core.sampling`).

Shape letters: X any dims, V vocabulary, N on-policy token chains, K depths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor


def overlap(target_XV: Tensor, draft_XV: Tensor) -> Tensor:
    """Chance [X] that rejection sampling accepts: sum_v min(p, q) = 1 - TV(p, q)."""
    return torch.minimum(target_XV, draft_XV).sum(dim=-1)


def target_only_acceptance(target_XV: Tensor, draft_XV: Tensor) -> Tensor:
    """Chance [X] that target-only accepts the greedy draft: p(argmax q)."""
    return target_XV.gather(-1, draft_XV.argmax(dim=-1, keepdim=True)).squeeze(-1)


def rejection_beats_target_only(target_XV: Tensor, draft_XV: Tensor) -> Tensor:
    """Where [X] rejection accepts more often than target-only: TV(p, q) < 1 - p(argmax q)."""
    return overlap(target_XV, draft_XV) > target_only_acceptance(target_XV, draft_XV)


def coupling_matches(target_XV: Tensor, draft_XV: Tensor) -> Tensor:
    """Chance [X, V] that under shared Gumbel noise draft and target both pick token x (arXiv 2408.07978).

    It is 1 / sum_y max(p_y / p_x, q_y / q_x). Sorted by p / q, the larger of the two terms is the q one for all tokens
    before x and the p one from x on, so a sort and two running sums do: O(V log V). Float64.
    """
    target_XV, draft_XV = target_XV.double(), draft_XV.double()
    is_shared_XV = (target_XV > 0) & (draft_XV > 0)
    ratio_XV = torch.where(draft_XV > 0, target_XV / draft_XV, math.inf)
    order_XV = ratio_XV.argsort(dim=-1)
    target_sorted_XV, draft_sorted_XV = target_XV.gather(-1, order_XV), draft_XV.gather(-1, order_XV)
    target_from_XV = target_sorted_XV.flip(-1).cumsum(dim=-1).flip(-1)
    draft_before_XV = draft_sorted_XV.cumsum(dim=-1) - draft_sorted_XV
    sum_XV = target_from_XV / target_sorted_XV + draft_before_XV / draft_sorted_XV
    matches_XV = torch.empty_like(sum_XV).scatter_(-1, order_XV, sum_XV.reciprocal())
    return matches_XV.masked_fill(~is_shared_XV, 0)


def coupling_matches_pairwise(target_XV: Tensor, draft_XV: Tensor) -> Tensor:
    """The same [X, V] as its formula reads, over all V^2 pairs: the reference for small vocabularies."""
    target_XV, draft_XV = target_XV.double(), draft_XV.double()
    is_shared_XV = (target_XV > 0) & (draft_XV > 0)
    target_ratio_XVV = target_XV[..., None, :] / target_XV[..., :, None]
    draft_ratio_XVV = draft_XV[..., None, :] / draft_XV[..., :, None]
    sum_XV = torch.maximum(target_ratio_XVV, draft_ratio_XVV).sum(dim=-1)
    return sum_XV.reciprocal().masked_fill(~is_shared_XV, 0)


def coupling_acceptance(target_XV: Tensor, draft_XV: Tensor) -> Tensor:
    """Chance [X] that the coupled draft is the target's token; between (1 - TV) / (1 + TV) and 1 - TV. Float64."""
    return coupling_matches(target_XV, draft_XV).sum(dim=-1)


def entropy(probs_XV: Tensor) -> Tensor:
    """Entropy [X] in nats."""
    return torch.special.entr(probs_XV).sum(dim=-1)


def expected_accepted(acceptance_NK: Tensor, survival_NK: Tensor) -> Tensor:
    """Expected accepted drafts [N] of a rule that decides depth by depth, on chains sampled from the target.

    sum_k acceptance_k * prod_{i<k} survival_i, where acceptance is the chance at a depth over all tokens, and survival
    the chance that the chain's own token y would have come out as an accepted draft, given that y comes out:

    * rejection: overlap, and min(1, q(y) / p(y));
    * target-only: p(argmax q), and [y = argmax q];
    * coupling: `coupling_acceptance`, and ``coupling_matches(...)[y] / p(y)``.

    Unbiased for the rule's accepted count, unlike the product of acceptances along teacher-forced prefixes.
    """
    weight_NK = torch.cat([torch.ones_like(survival_NK[:, :1]), survival_NK[:, :-1]], dim=1).cumprod(dim=1)
    return (acceptance_NK * weight_NK).sum(dim=1)


def expected_accepted_rejection(overlap_NK: Tensor, draft_logprob_NK: Tensor, target_logprob_NK: Tensor) -> Tensor:
    """Expected accepted drafts [N] of rejection: sum_k alpha_k prod_{i<k} min(1, q_i(y_i) / p_i(y_i)).

    Log-probs in nats, of chains sampled from the target; a draft's may be -inf.
    """
    return expected_accepted(overlap_NK, (draft_logprob_NK - target_logprob_NK).clamp(max=0).exp())


def expected_accepted_block(draft_logprob_NK: Tensor, target_logprob_NK: Tensor) -> Tensor:
    """Expected accepted drafts [N] of block verification: sum_l min_{0<=k<=l} prod_{i<=k} q_i(y_i) / p_i(y_i)."""
    log_ratio_NK = (draft_logprob_NK - target_logprob_NK).cumsum(dim=1)
    return log_ratio_NK.cummin(dim=1).values.clamp(max=0).exp().sum(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptanceCounter:
    """What became of drafts, as counts: add counters freely and divide once. Depth k is index k - 1.

    Depths are counted only in rounds that drafted them, so rounds with short drafts are no failures of late depths.
    """

    num_rounds: int = 0
    num_drafted_K: tuple[int, ...] = ()  # rounds that drafted depth k
    num_reached_K: tuple[int, ...] = ()  # of these, rounds whose first k - 1 drafts survived
    num_accepted_K: tuple[int, ...] = ()  # of these, rounds whose draft k survived too

    @classmethod
    def of_rounds(cls, num_accepted: Sequence[int], num_drafts: Sequence[int]) -> "AcceptanceCounter":
        """Rounds that accepted and drafted so many tokens; ``ValueError`` where one accepted more than it drafted."""
        rounds = list(zip(num_accepted, num_drafts, strict=True))
        if any(not 0 <= accepted <= drafted for accepted, drafted in rounds):
            raise ValueError("a round accepted more tokens than it drafted; pass accepted counts before drafted ones.")
        depths = range(1, max(num_drafts, default=0) + 1)
        return cls(
            num_rounds=len(rounds),
            num_drafted_K=tuple(sum(drafted >= k for _, drafted in rounds) for k in depths),
            num_reached_K=tuple(
                sum(drafted >= k and accepted >= k - 1 for accepted, drafted in rounds) for k in depths
            ),
            num_accepted_K=tuple(sum(accepted >= k for accepted, _ in rounds) for k in depths),
        )

    def __add__(self, other: "AcceptanceCounter") -> "AcceptanceCounter":
        return AcceptanceCounter(
            num_rounds=self.num_rounds + other.num_rounds,
            num_drafted_K=_add(self.num_drafted_K, other.num_drafted_K),
            num_reached_K=_add(self.num_reached_K, other.num_reached_K),
            num_accepted_K=_add(self.num_accepted_K, other.num_accepted_K),
        )

    @property
    def num_drafted(self) -> int:
        """Draft tokens."""
        return sum(self.num_drafted_K)

    @property
    def num_accepted(self) -> int:
        """Accepted draft tokens."""
        return sum(self.num_accepted_K)

    @property
    def rate(self) -> float:
        """Accepted draft tokens / draft tokens; nan without drafts."""
        return _ratio(self.num_accepted, self.num_drafted)

    @property
    def accept_length(self) -> float:
        """Tokens per round, 1 + accepted: between 1 and K + 1; nan without rounds."""
        return _ratio(self.num_rounds + self.num_accepted, self.num_rounds)

    @property
    def conditional_K(self) -> tuple[float, ...]:
        """Chance that draft k survives given that the k - 1 before it did; nan where none got that far."""
        return tuple(map(_ratio, self.num_accepted_K, self.num_reached_K))

    @property
    def survival_K(self) -> tuple[float, ...]:
        """Chance that drafts 1 to k all survive, over the rounds that drafted depth k."""
        return tuple(map(_ratio, self.num_accepted_K, self.num_drafted_K))


def _add(left_K: tuple[int, ...], right_K: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(left + right for left, right in zip_longest(left_K, right_K, fillvalue=0))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
