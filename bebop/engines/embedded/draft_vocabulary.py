"""Drafting from a few tokens: lm_head, sampling and what is kept of a draft's law are as large as their number.

The head's distribution q has no mass on other tokens. Verification is exact for every q, so this changes how many
drafts are accepted, never what is emitted.

Legend: N rows, b rows, K draft tokens, H hidden size, S tokens that may be drafted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bebop.engines.embedded.matrices import Matrix
from bebop.models.policy import Policy


class DraftVocabulary:
    """The tokens that a policy's head may draft, and their part of the lm_head."""

    def __init__(self, policy: Policy, tokens: tuple[int, ...]) -> None:
        self._tokens_S = torch.tensor(tokens, device=policy.device)
        self._vocabulary = policy.config.vocab_size
        lm_head: Any = policy.backbone.get_output_embeddings()
        self._lm_head = Matrix(lm_head, arrange=self._rows)

    @classmethod
    def of(cls, policy: Policy) -> DraftVocabulary | None:
        """None where the head may draft every token."""
        return None if policy.draft_vocabulary is None else cls(policy, policy.draft_vocabulary)

    @property
    def size(self) -> int:
        return len(self._tokens_S)

    def refresh(self) -> None:
        """Take over the lm_head as it is now."""
        self._lm_head.refresh()

    def logits(self, output_NH: Tensor) -> Tensor:
        """[N, S]."""
        return self._lm_head(output_NH)

    def choose(self, pick: Callable[[Tensor, Tensor], Tensor], probs_bS: Tensor, noise: Tensor) -> Tensor:
        """Tokens [b] that ``pick`` takes out of probabilities by noise [b], or [b, V] where it is per token."""
        return self._tokens_S[pick(probs_bS, noise if noise.ndim == 1 else noise[:, self._tokens_S])]

    def spread(self, probs_bKS: Tensor) -> Tensor:
        """[b, K, V], zero for other tokens."""
        whole_bKV = probs_bKS.new_zeros(*probs_bKS.shape[:2], self._vocabulary)
        return whole_bKV.index_copy_(2, self._tokens_S, probs_bKS)

    def _rows(self, tensors: list[Tensor]) -> Tensor:
        (tensor,) = tensors
        return tensor.index_select(0, self._tokens_S)
