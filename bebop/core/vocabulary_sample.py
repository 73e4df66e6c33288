"""The head's loss on a sample of the vocabulary: its cost no longer grows with the vocabulary.

Some tokens always take part. Of the others, M are drawn without replacement, and each stands for all that it was drawn
from: its unnormalised probability counts D / M times, D being their number. Partition functions, the sums over the
vocabulary, are then estimated without bias (sampled softmax: Bengio and Senécal, IEEE Transactions on Neural Networks
19, 2008), and so is every sum that the objectives take over p and q, up to the error of those. A factor on an
unnormalised probability is a term in its logit: one more column of the states, constant, and of the lm_head.

Shapes: A tokens that always take part, S tokens of the sample, V vocabulary, N chains, K depths, H hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from bebop.core.chains import DraftChains


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
    chains: DraftChains, head_weight_VH: Tensor, sample: VocabularySample, temperature: float = 1.0
) -> tuple[DraftChains, Tensor]:
    """Chains and lm_head [S, H + 1] whose loss at ``temperature`` is that on the sample.

    Depths whose token is not in the sample do not count.
    """
    tokens_S = sample.tokens_S.to(head_weight_VH.device)
    factors_S1 = (temperature * sample.log_multiplicity_S).to(head_weight_VH)[:, None]
    tokens_NK = torch.searchsorted(tokens_S, chains.tokens_NK.contiguous()).clamp(max=len(tokens_S) - 1)
    on_sample = replace(
        chains,
        draft_states_NKH=pad(chains.draft_states_NKH, (0, 1), value=1.0),
        target_states_PH=pad(chains.target_states_PH, (0, 1), value=1.0),
        tokens_NK=tokens_NK,
        depth_mask_NK=chains.counted_NK & (tokens_S[tokens_NK] == chains.tokens_NK),
    )
    return on_sample, torch.cat([head_weight_VH.detach()[tokens_S], factors_S1], dim=1)
