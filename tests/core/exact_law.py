"""Exact enumeration of one round over a small vocabulary: what a rule emits, summed rather than sampled.

A model is a list of tables: ``tables[d]`` is [V^d, V], the law of the token at depth d after each prefix of length d,
whose row is the prefix read as a number in base V. Shape letters: C chains (all of them, V^K), K drafts, J = K + 1,
V vocabulary.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bebop.core.distributions import Dense
from bebop.core.verify import Chances, RatioRule, Round, leftover_at

Tables = list[Tensor]
LeftoverAt = Callable[[Round, Chances, Tensor], Tensor]


@dataclass(frozen=True)
class ExactLaw:
    """The joint law [V^J] of the first J tokens, and the expected number of accepted drafts."""

    joint: Tensor
    accepted: float


def random_tables(V: int, depth: int, generator: torch.Generator, sharpness: float = 1.0, zeros: float = 0.0) -> Tables:
    """A random model in float64; `zeros` is the share of tokens without mass (one always keeps some)."""
    tables = []
    for d in range(depth):
        logits = torch.randn((V**d, V), generator=generator, dtype=torch.float64) * sharpness
        is_out = torch.rand(logits.shape, generator=generator) < zeros
        is_out.scatter_(1, logits.argmax(dim=1, keepdim=True), False)
        tables.append(logits.masked_fill(is_out, -torch.inf).softmax(dim=1))
    return tables


def greedy_tables(tables: Tables) -> Tables:
    """The one-hot at each row's largest."""
    return [torch.nn.functional.one_hot(t.argmax(dim=1), t.shape[1]).double() for t in tables]


def all_chains(V: int, K: int) -> Tensor:
    """Every sequence [V^K, K]."""
    return torch.tensor(list(itertools.product(range(V), repeat=K)), dtype=torch.int64).view(V**K, K)


def along(tables: Tables, chains_CK: Tensor) -> Tensor:
    """The distributions [C, len(tables), V] met along each chain."""
    if not tables:
        return torch.zeros((chains_CK.shape[0], 0, 1), dtype=torch.float64)
    V = tables[0].shape[1]
    row_C = torch.zeros(chains_CK.shape[0], dtype=torch.int64)
    rows = []
    for d, table in enumerate(tables):
        rows.append(table[row_C])
        if d < chains_CK.shape[1]:
            row_C = row_C * V + chains_CK[:, d]
    return torch.stack(rows, dim=1)


def chosen(tables: Tables, chains_CK: Tensor) -> Tensor:
    """The probability [C, K] of each token of each chain."""
    K = chains_CK.shape[1]
    return along(tables[:K], chains_CK).gather(-1, chains_CK[..., None]).squeeze(-1)


def joint_law(tables: Tables) -> Tensor:
    """The joint law [V^depth] of all tokens."""
    law = torch.ones(1, dtype=torch.float64)
    for table in tables:
        law = (law[:, None] * table).flatten()
    return law


def enumerate_round(
    rule: RatioRule,
    target: Tables,
    draft: Tables,
    *,
    drawn_from: Tables | None = None,
    leftover: LeftoverAt = leftover_at,
    num_drafts: int | None = None,
) -> ExactLaw:
    """The law of J tokens: a round of K = len(draft) drafts, continued by the target itself to J tokens.

    `drawn_from` is what drafts are sampled from where that is not what the rule is told; `num_drafts` marks later
    depths as padding.
    """
    V, K = target[0].shape[1], len(draft)
    chains_CK = all_chains(V, K)
    weight_C = chosen(drawn_from or draft, chains_CK).prod(dim=1)
    num_drafts_C = torch.full((V**K,), K if num_drafts is None else num_drafts)
    draft_CKV = along(draft, chains_CK)
    round_ = Round(
        draft_tokens_BK=chains_CK,
        draft=Dense(draft_CKV),
        target=Dense(along(target, chains_CK)),
        num_drafts_B=num_drafts_C,
    )
    chances = rule.chances(round_)
    ended = [torch.zeros(V**length, dtype=torch.float64) for length in range(K + 2)]
    accepted = 0.0
    for coins in itertools.product((False, True), repeat=K):
        coins_CK = torch.tensor(coins, dtype=torch.bool).expand(V**K, K)
        prob_C = weight_C * torch.where(coins_CK, chances.accept_BK, 1 - chances.accept_BK).prod(dim=1)
        num_accepted_C = rule.count(coins_CK)
        num_accepted = int(num_accepted_C[0])
        prefix_C = torch.arange(V**K) // V ** (K - num_accepted)
        weights_CV = leftover(round_, chances, num_accepted_C)
        law_CV = prob_C[:, None] * weights_CV / weights_CV.sum(dim=1, keepdim=True)
        ended[num_accepted + 1].view(-1, V).index_add_(0, prefix_C, law_CV)
        accepted += num_accepted * float(prob_C.sum())
    joint = ended[1]
    for length in range(1, K + 1):
        joint = (joint[:, None] * target[length]).flatten() + ended[length + 1]
    return ExactLaw(joint=joint, accepted=accepted)
