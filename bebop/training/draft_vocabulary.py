"""Which tokens a head may draft: those that the policy wrote, where they are few and others are rare.

Shapes: none; token ids are integers.
"""

from collections import Counter
from collections.abc import Iterable

from bebop.tasks.chat import Transcript

MAX_UNSEEN = 0.002
"""Chance that the policy's next token is none of those it has written, above which every token may be drafted: such a
token is a draft refused."""
MAX_SHARE = 0.5
"""Share of the policy's vocabulary above which a smaller one saves too little."""


def draft_vocabulary(transcripts: Iterable[Transcript], vocab_size: int) -> tuple[int, ...] | None:
    """The tokens that the policy wrote, in rising order, or None for the whole vocabulary (see the limits above).

    The chance of tokens that were never seen is estimated by the share of those seen once (Good and Turing; Good,
    Biometrika 40, 1953).
    """
    counts = Counter(
        token for one in transcripts for token, is_model in zip(one.tokens, one.is_model, strict=True) if is_model
    )
    seen_once = sum(count == 1 for count in counts.values())
    if not counts or len(counts) > MAX_SHARE * vocab_size or seen_once > MAX_UNSEEN * counts.total():
        return None
    return tuple(sorted(counts))
