"""Which tokens a head may draft, from the policy's own tokens."""

from bebop.tasks.chat import Transcript
from bebop.training.draft_vocabulary import draft_vocabulary


def written(tokens: list[int]) -> Transcript:
    return Transcript(tokens, [True] * len(tokens))


def test_the_tokens_that_the_policy_wrote() -> None:
    prompt = Transcript([90, 91, 5], [False, False, True])
    assert draft_vocabulary([written([7, 3, 5] * 2), prompt], 100) == (3, 5, 7)


def test_every_token_where_new_ones_are_likely() -> None:
    assert draft_vocabulary([written([1] * 499 + [2])], 100) == (1, 2)
    assert draft_vocabulary([written([1] * 498 + [2])], 100) is None


def test_every_token_where_few_would_save_little() -> None:
    assert draft_vocabulary([written([1, 2] * 9)], 4) == (1, 2)
    assert draft_vocabulary([written([1, 2] * 9)], 3) is None
    assert draft_vocabulary([], 3) is None
