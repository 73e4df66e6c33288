"""The lm_head over the tokens that the head may draft: where the vocabulary is large, most of a draft's cost.

The head's distribution q has no mass on other tokens. Verification is exact for every q, so this changes how many
drafts are accepted, never what is emitted.

Legend: N rows, H hidden size, S tokens that may be drafted, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bebop.engines.embedded.matrices import Matrix
from bebop.models.policy import Policy


class DraftVocabulary:
    """Draft logits of a policy whose head may draft the given tokens alone."""

    def __init__(self, policy: Policy, tokens: tuple[int, ...]) -> None:
        self._tokens_S = torch.tensor(tokens, device=policy.device)
        self._size = policy.config.vocab_size
        lm_head: Any = policy.backbone.get_output_embeddings()
        self._lm_head = Matrix(lm_head, arrange=self._rows)

    @classmethod
    def of(cls, policy: Policy) -> DraftVocabulary | None:
        """None where the head may draft every token."""
        return None if policy.draft_vocabulary is None else cls(policy, policy.draft_vocabulary)

    def refresh(self) -> None:
        """Take over the lm_head as it is now."""
        self._lm_head.refresh()

    def logits(self, output_NH: Tensor) -> Tensor:
        """[N, V], -inf outside the draft vocabulary."""
        logits_NS = self._lm_head(output_NH)
        return logits_NS.new_full((len(logits_NS), self._size), float("-inf")).index_copy_(1, self._tokens_S, logits_NS)

    def _rows(self, tensors: list[Tensor]) -> Tensor:
        (tensor,) = tensors
        return tensor.index_select(0, self._tokens_S)
