"""The tokens that a policy writes: those its head may draft, where they are few, and those its loss always compares.

Shapes: none; token ids are integers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bebop.core.vocabulary_sample import VocabularySample, sample_vocabulary
from bebop.tasks.chat import Transcript

MAX_UNSEEN = 0.01
"""Chance that a token of the policy's is none of those it has written before, above which every token may be drafted:
drafts of such a token cannot be right."""
MAX_SHARE = 0.5
"""Share of the policy's vocabulary above which a smaller one saves too little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenTokens:
    """What some rollouts of a policy consist of."""

    tokens: tuple[int, ...]
    """In rising order."""
    unseen: float
    """Estimated chance that a token of another rollout is none of them."""

    @classmethod
    def of(cls, transcripts: Iterable[Transcript]) -> WrittenTokens:
        """The chance of unseen tokens is the share of those found in one rollout alone: what that rollout would have
        had of them without the others (Good and Turing; Good, Biometrika 40, 1953)."""
        counts: Counter[int] = Counter()
        num_rollouts: Counter[int] = Counter()
        for one in transcripts:
            found = Counter(token for token, is_model in zip(one.tokens, one.is_model, strict=True) if is_model)
            counts += found
            num_rollouts.update(found.keys())
        alone = sum(count for token, count in counts.items() if num_rollouts[token] == 1)
        return cls(tokens=tuple(sorted(counts)), unseen=alone / counts.total() if counts else 1.0)

    def draft_vocabulary(self, vocab_size: int) -> tuple[int, ...] | None:
        """The tokens, or None for the whole vocabulary (see the limits above)."""
        is_small = len(self.tokens) <= MAX_SHARE * vocab_size and self.unseen <= MAX_UNSEEN
        return self.tokens if self.tokens and is_small else None

    def sample(self, vocab_size: int, num_drawn: int | None, seed: int, step: int) -> VocabularySample | None:
        """The tokens and ``num_drawn`` others, other ones in every step; None for all, where there are not so many."""
        if num_drawn is None or num_drawn >= vocab_size - len(self.tokens):
            return None
        generator = torch.Generator().manual_seed(random.Random(f"{seed}:{step}").getrandbits(63))
        return sample_vocabulary(torch.tensor(self.tokens, dtype=torch.long), vocab_size, num_drawn, generator)

    def describe(self, vocab_size: int) -> str:
        """What a head may draft and why, in a clause."""
        chance = f"another rollout's tokens are none of the {len(self.tokens)} found with a chance of {self.unseen:.2%}"
        few = self.draft_vocabulary(vocab_size)
        return f"{drafted(few, vocab_size)}; {chance}" if few else f"{drafted(few, vocab_size)}, because {chance}"


def drafted(few: tuple[int, ...] | None, vocab_size: int) -> str:
    """The size of a draft vocabulary, in words."""
    return f"{len(few)} of {vocab_size} tokens" if few else "every token"
