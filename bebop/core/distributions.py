"""A distribution per depth, in the two forms verification meets: a dense tensor and a one-hot.

Rules ask three questions only: how likely is a token at each depth, what is the distribution at one depth, and what
is it at a depth of each row's own. A one-hot answers without ever being [B, K, V].

Shape letters: B rows, K depths, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Distributions(Protocol):
    """Distributions over V tokens at depths 0..K-1 of B rows; answers are float32, or float64 where the source is."""

    def chosen(self, tokens_BK: Tensor) -> Tensor:
        """Probability [B, K] of the token at each of the first K depths."""
        ...

    def depth(self, depth: int) -> Tensor:
        """The distributions [B, V] at one depth."""
        ...

    def row(self, depth_B: Tensor) -> Tensor:
        """The distributions [B, V] at a depth of each row's own."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """Probabilities held as one tensor [B, K, V] of any float dtype."""

    probs_BKV: Tensor

    def chosen(self, tokens_BK: Tensor) -> Tensor:
        """Probability [B, K] of the token at each of the first K depths."""
        return widen(self.probs_BKV[:, : tokens_BK.shape[1]].gather(-1, tokens_BK[..., None]).squeeze(-1))

    def depth(self, depth: int) -> Tensor:
        """The distributions [B, V] at one depth."""
        return widen(self.probs_BKV[:, depth])

    def row(self, depth_B: Tensor) -> Tensor:
        """The distributions [B, V] at a depth of each row's own."""
        return widen(_pick(self.probs_BKV, depth_B))


@dataclass(frozen=True, slots=True)
class OneHot:
    """All mass on one token per depth [B, K], of `num_tokens` in the vocabulary: what a greedy draft was drawn from."""

    tokens_BK: Tensor
    num_tokens: int

    def chosen(self, tokens_BK: Tensor) -> Tensor:
        """1 where the token is the one, else 0, [B, K]."""
        return (tokens_BK == self.tokens_BK[:, : tokens_BK.shape[1]]).float()

    def depth(self, depth: int) -> Tensor:
        """The one-hots [B, V] at one depth."""
        return self._one_hot(self.tokens_BK[:, depth])

    def row(self, depth_B: Tensor) -> Tensor:
        """The one-hots [B, V] at a depth of each row's own."""
        return self._one_hot(_pick(self.tokens_BK[..., None], depth_B).squeeze(-1))

    def _one_hot(self, token_B: Tensor) -> Tensor:
        zeros_BV = torch.zeros((token_B.shape[0], self.num_tokens), device=token_B.device)
        return zeros_BV.scatter_(-1, token_B[:, None], 1.0)


def as_distributions(probs: Tensor | Distributions) -> Distributions:
    """A tensor [B, K, V] of probabilities, or distributions that already are some, as distributions."""
    return Dense(probs) if isinstance(probs, Tensor) else probs


def _pick(values_BKV: Tensor, depth_B: Tensor) -> Tensor:
    """``values[b, depth[b]]``, [B, V]; depths past the last one give the last. Zeros where there is no depth at all."""
    B, K, V = values_BKV.shape
    if K == 0:
        return values_BKV.new_zeros((B, V))
    return values_BKV[torch.arange(B, device=values_BKV.device), depth_B.clamp(max=K - 1)]


def widen(values: Tensor) -> Tensor:
    """At least float32: a ratio of bfloat16 probabilities would be off by half a percent."""
    return values if values.dtype == torch.float64 else values.float()
