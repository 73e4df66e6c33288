"""The head's loss on a sample of the vocabulary: its cost no longer grows with the vocabulary.

Some tokens always take part. Of the others, M are drawn without replacement, and each stands for all that it was drawn
from: its unnormalised probability counts D / M times, D being their number. Partition functions, the sums over the
vocabulary, are then estimated without bias (sampled softmax: Bengio and Senécal, IEEE Transactions on Neural Networks
19, 2008); p and q are divided by such estimates, so losses are biased, by the order of their variance. A factor on an
unnormalised probability is a term in its logit, so it is carried by further columns of the lm_head, at which the states
are 1.

Shapes: A tokens that always take part, D others, S tokens of the sample, V vocabulary, N chains, K depths, H hidden
size, E further columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from bebop.core.chains import DraftChains

EXTRA_COLUMNS = 8
"""A multiple of 8, which fast half-precision products want of a row's length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularySample:
    """The tokens that take part in a loss, and how many each stands for."""

    tokens_S: Tensor
    """In rising order."""
    log_multiplicity_S: Tensor
    """float32; 0 for a token that stands for itself."""


def sample_vocabulary(
    always_A: Tensor, vocab_size: int, num_drawn: int, generator: torch.Generator
) -> VocabularySample:
    """``always_A`` and ``num_drawn`` of the other tokens. ValueError where there are not so many others."""
    is_other_V = torch.ones(vocab_size, dtype=torch.bool).index_fill_(0, always_A, False)
    others_D = is_other_V.nonzero().squeeze(1)
    if not 1 <= num_drawn <= len(others_D):
        raise ValueError(f"{num_drawn} tokens cannot be drawn from {len(others_D)}")
    drawn = others_D[torch.randperm(len(others_D), generator=generator)[:num_drawn]]
    tokens_S, order_S = torch.cat([always_A, drawn]).sort()
    multiplicity = math.log(len(others_D) / num_drawn)
    return VocabularySample(tokens_S=tokens_S, log_multiplicity_S=multiplicity * (order_S >= len(always_A)))


def restricted(
    chains: DraftChains, head_weight_VH: Tensor, sample: VocabularySample, temperature: float
) -> tuple[DraftChains, Tensor]:
    """Chains and lm_head [S, H + E] whose loss at ``temperature`` is that on the sample.

    ValueError where a depth counts whose token is not in the sample.
    """
    tokens_S = sample.tokens_S.to(head_weight_VH.device)
    tokens_NK = torch.searchsorted(tokens_S, chains.tokens_NK.contiguous()).clamp(max=len(tokens_S) - 1)
    if not bool(((tokens_S[tokens_NK] == chains.tokens_NK) | ~chains.counted_NK).all()):
        raise ValueError("a token of the chains is not in the sample; let every token of the data take part")
    on_sample = replace(
        chains,
        draft_states_NKH=pad(chains.draft_states_NKH, (0, EXTRA_COLUMNS), value=1.0),
        target_states_PH=pad(chains.target_states_PH, (0, EXTRA_COLUMNS), value=1.0),
        tokens_NK=tokens_NK,
    )
    factors_SE = columns_of((temperature * sample.log_multiplicity_S).to(head_weight_VH.device), head_weight_VH.dtype)
    return on_sample, torch.cat([head_weight_VH.detach()[tokens_S], factors_SE], dim=1)


def columns_of(values_S: Tensor, dtype: torch.dtype) -> Tensor:
    """[S, E] that add up to the values: what ``dtype`` rounds away stands in a column of its own."""
    rounded_S = values_S.to(dtype)
    rest_S = (values_S - rounded_S.to(values_S.dtype)).to(dtype)
    return pad(torch.stack([rounded_S, rest_S], dim=1), (0, EXTRA_COLUMNS - 2))
