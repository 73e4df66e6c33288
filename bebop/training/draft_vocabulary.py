"""The tokens that a policy writes, where they are few: those its head may draft, and those its loss always compares.

Shapes: none; token ids are integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch

from bebop.core.vocabulary_sample import VocabularySample, sample_vocabulary
from bebop.tasks.chat import Transcript

MAX_UNSEEN = 0.002
"""Chance that the policy's next token is none of those it has written, above which every token may be drafted: such a
token is a draft refused."""
MAX_SHARE = 0.5
"""Share of the policy's vocabulary above which a smaller one saves too little."""

VocabularySource = Callable[[int], VocabularySample | None]
"""step -> the part of the vocabulary on which its losses are computed; None for all of it."""


def draft_vocabulary(transcripts: Iterable[Transcript], vocab_size: int) -> tuple[int, ...] | None:
    """The tokens that the policy wrote, in rising order, or None for the whole vocabulary (see the limits above).

    The chance of tokens that were never seen is estimated by the share of those seen once (Good and Turing; Good,
    Biometrika 40, 1953).
    """
    counts = written(transcripts)
    seen_once = sum(count == 1 for count in counts.values())
    if not counts or len(counts) > MAX_SHARE * vocab_size or seen_once > MAX_UNSEEN * counts.total():
        return None
    return tuple(sorted(counts))


def written(transcripts: Iterable[Transcript]) -> Counter[int]:
    """How often the policy wrote each token."""
    return Counter(
        token for one in transcripts for token, is_model in zip(one.tokens, one.is_model, strict=True) if is_model
    )


def whole_vocabulary(step: int) -> None:
    """Every token, in every step."""


def drawn_vocabularies(
    transcripts: Iterable[Transcript], vocab_size: int, num_drawn: int | None, seed: int
) -> VocabularySource:
    """The written tokens and ``num_drawn`` others, other ones in every step; the whole where there are not so many."""
    always_A = torch.tensor(sorted(written(transcripts)), dtype=torch.long)
    if num_drawn is None or num_drawn >= vocab_size - len(always_A):
        return whole_vocabulary

    def of_step(step: int) -> VocabularySample:
        generator = torch.Generator().manual_seed((seed << 32) + step)
        return sample_vocabulary(always_A, vocab_size, num_drawn, generator)

    return of_step
