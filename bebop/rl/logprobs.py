"""The policy's log-probabilities of tokens that were sampled, under the distribution they were sampled from.

Shapes: N tokens that the policy wrote, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bebop.core.sampling import Sampling, log_distribution
from bebop.models.policy import Policy

LOGITS_BYTES = 256 * 2**20
"""Bound on the logits of one tile."""


def token_logprobs(
    policy: Policy, states_NH: Tensor, tokens_N: Tensor, sampling: Sampling, logits_bytes: int = LOGITS_BYTES
) -> Tensor:
    """Log-probs [N] from the states that enter the lm_head.

    Logits that exceed the bound are made in tiles and, for the gradient, a second time: one more lm_head product.
    """
    size = max(1, logits_bytes // (4 * policy.config.vocab_size))

    def of_tile(tile_NH: Tensor, tile_N: Tensor) -> Tensor:
        return log_distribution(policy.logits(tile_NH), sampling).gather(-1, tile_N[:, None]).squeeze(-1)

    if len(tokens_N) <= size:
        return of_tile(states_NH, tokens_N)
    tiles = [
        checkpoint(of_tile, tile_NH, tile_N, use_reentrant=False)
        for tile_NH, tile_N in zip(states_NH.split(size), tokens_N.split(size), strict=True)
    ]
    return torch.cat(tiles)  # type: ignore[arg-type]
