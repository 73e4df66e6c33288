"""Which tokens a head may draft and its loss always compares, from the policy's own tokens."""

import pytest
import torch

from bebop.tasks.chat import Transcript
from bebop.training.draft_vocabulary import WrittenTokens


def rollout(tokens: list[int]) -> Transcript:
    return Transcript(tokens, [True] * len(tokens))


def written(*rollouts: list[int]) -> WrittenTokens:
    return WrittenTokens.of(map(rollout, rollouts))


def test_the_tokens_that_the_policy_wrote() -> None:
    prompt = Transcript([90, 91, 5], [False, False, True])
    assert WrittenTokens.of([rollout([7, 3, 5]), prompt]).tokens == (3, 5, 7)


def test_tokens_of_one_rollout_alone_say_how_likely_new_ones_are() -> None:
    """However often that rollout repeats them."""
    assert written([1, 2], [1, 2]).unseen == 0.0
    assert written([1, 2, 8, 8], [1, 2]).unseen == pytest.approx(2 / 6)
    assert written().unseen == 1.0


def test_the_estimate_is_right_on_average() -> None:
    """Over rollouts of a law with rare tokens, each written three times: the chance that another rollout's are new."""
    rng = torch.Generator().manual_seed(0)
    law = torch.tensor([0.5, 0.4] + [0.1 / 200] * 200)
    estimates, truths = [], []
    for _ in range(200):
        drawn = law.multinomial(60, replacement=True, generator=rng).tolist()
        found = written(*([token] * 3 for token in drawn))
        estimates.append(found.unseen)
        truths.append(1 - law[list(found.tokens)].sum().item())
    mean = sum(estimates) / 200
    assert 0.05 < mean < 0.15
    assert mean == pytest.approx(sum(truths) / 200, rel=0.1)


def test_every_token_where_new_ones_are_likely() -> None:
    assert written([1] * 99, [1, 2]).draft_vocabulary(100) == (1, 2)
    assert written([1] * 97, [1, 2]).draft_vocabulary(100) is None


def test_every_token_where_few_would_save_little() -> None:
    assert written([1, 2], [1, 2]).draft_vocabulary(4) == (1, 2)
    assert written([1, 2], [1, 2]).draft_vocabulary(3) is None
    assert written().draft_vocabulary(3) is None


def test_what_is_said_of_it() -> None:
    few, many = written([1, 2], [1, 2]), written([1, 2, 3])
    assert few.describe(9).startswith("2 of 9 tokens; ")
    assert "none of the 3 found with a chance of 100.00%" in many.describe(9)


def test_others_are_drawn_anew_in_every_step() -> None:
    found = written([1, 4])
    first, again, later = (found.sample(50, 5, seed, step) for seed, step in ((0, 0), (0, 0), (0, 1)))
    assert first and again and later
    assert torch.equal(first.tokens_S, again.tokens_S) and not torch.equal(first.tokens_S, later.tokens_S)
    assert len(first.tokens_S) == 7 and {1, 4} <= set(first.tokens_S.tolist())
    assert found.sample(50, 5, -(2**40), 2**40) is not None


@pytest.mark.parametrize("num_drawn", [None, 48, 60])
def test_the_whole_vocabulary_where_there_are_not_so_many_others(num_drawn: int | None) -> None:
    assert written([1, 4]).sample(50, num_drawn, 0, 0) is None
