"""Whole generations against the exact law, and streams that are wired wrongly, which it must reveal.

Generations are of first-order Markov models, whose joint law of a few tokens is a product. Every request has its own
seed, and rounds of different requests end in different places, as in an engine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor

from bebop.core.sampling import draw
from bebop.core.streams import Purpose, RoundStreams, UniformSource, coupling_noise, fold_key, uniform
from bebop.core.verify import RULES, Verdict, block, couple, coupled, rejection, target_only

V, LENGTH, NUM_REQUESTS = 3, 4, 40_000
TARGET = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.05, 0.15, 0.8]])
DRAFT = torch.tensor(
    [[0.2, 0.3, 0.5], [0.7, 0.2, 0.1], [0.3, 0.4, 0.3]]
)  # far from the target, so that much is refused

MakeStreams = Callable[[Tensor, Tensor], UniformSource]
Play = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Verdict]]


def own_streams(seed_B: Tensor, position_B: Tensor) -> RoundStreams:
    return RoundStreams(seed_B=seed_B, position_B=position_B)


def along(table_VV: Tensor, last_B: Tensor, draft_BK: Tensor) -> Tensor:
    """The distributions [B, K + 1, V] after the last token and after each draft."""
    return table_VV[torch.cat([last_B[:, None], draft_BK], dim=1)]


@dataclass(frozen=True)
class ByRatio:
    """A round of a ratio rule: drafts and coins from `streams`."""

    rule: Callable[..., Verdict]
    streams: MakeStreams = own_streams

    def __call__(self, seed_B: Tensor, position_B: Tensor, last_B: Tensor, K: int) -> tuple[Tensor, Verdict]:
        streams = self.streams(seed_B, position_B)
        tokens = [last_B]
        for depth in range(K):
            probs_BV = DRAFT[tokens[-1]]
            coin_B = streams.uniform(Purpose.DRAFT, torch.full_like(last_B, depth))
            tokens.append(probs_BV.argmax(dim=-1) if self.rule is target_only else draw(probs_BV, coin_B))
        draft_BK = torch.stack(tokens, dim=1)[:, 1:]
        draft_BKV = along(DRAFT, last_B, draft_BK)[:, :-1]
        return draft_BK, self.rule(draft_BK, draft_BKV, along(TARGET, last_B, draft_BK), streams)


def by_coupling(seed_B: Tensor, position_B: Tensor, last_B: Tensor, K: int) -> tuple[Tensor, Verdict]:
    noise_BJV = coupling_noise(seed_B, position_B[:, None] + torch.arange(K + 1), V)
    tokens = [last_B]
    for depth in range(K):
        tokens.append(couple(DRAFT[tokens[-1]], noise_BJV[:, depth]))
    draft_BK = torch.stack(tokens, dim=1)[:, 1:]
    return draft_BK, coupled(draft_BK, along(TARGET, last_B, draft_BK), noise_BJV)


def generate(play: Play, K: int, num_requests: int = NUM_REQUESTS) -> Tensor:
    """The first LENGTH tokens [B, LENGTH] of requests with seeds 0, 1, ... that all start after token 0."""
    seed_B = torch.arange(num_requests)
    tokens_BT = torch.zeros(num_requests, LENGTH * (K + 1) + 1, dtype=torch.int64)
    position_B = torch.ones(num_requests, dtype=torch.int64)
    for _ in range(LENGTH):
        last_B = tokens_BT.gather(1, position_B[:, None] - 1).squeeze(1)
        draft_BK, verdict = play(seed_B, position_B, last_B, K)
        emitted_BJ = torch.cat([draft_BK, draft_BK.new_zeros(num_requests, 1)], dim=1)
        emitted_BJ.scatter_(1, verdict.num_accepted_B[:, None], verdict.next_token_B[:, None])
        # Slots past the emitted ones are written again by the next round.
        tokens_BT.scatter_(1, position_B[:, None] + torch.arange(K + 1), emitted_BJ)
        position_B = position_B + verdict.num_accepted_B + 1
    return tokens_BT[:, 1 : LENGTH + 1]


def p_value(tokens_BL: Tensor) -> float:
    """Chi-square of the joint law of all LENGTH tokens."""
    expected = TARGET[0].double()
    for _ in range(LENGTH - 1):
        expected = (expected.view(-1, V)[:, :, None] * TARGET.double()).flatten()
    cell_B = (tokens_BL * V ** torch.arange(LENGTH - 1, -1, -1)).sum(dim=1)
    counts = cell_B.bincount(minlength=V**LENGTH)
    expected = expected / expected.sum() * tokens_BL.shape[0]
    return float(stats.chisquare(counts.numpy(), expected.numpy()).pvalue)


@pytest.mark.parametrize("K", [0, 1, 3])
@pytest.mark.parametrize("name", RULES)
def test_generations_follow_the_targets_joint_law(name: str, K: int) -> None:
    assert p_value(generate(ByRatio(RULES[name]), K)) > 1e-3


def test_coupled_generations_follow_the_targets_joint_law() -> None:
    assert p_value(generate(by_coupling, 2)) > 1e-3


@pytest.mark.parametrize("name", RULES)
def test_a_generator_will_do_for_coins(name: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def judge(draft_BK: Tensor, draft_BKV: Tensor, target_BJV: Tensor, rng: UniformSource) -> Verdict:
        del rng
        return RULES[name](draft_BK, draft_BKV, target_BJV, generator)

    play = ByRatio(judge) if name != "target_only" else ByRatio(target_only, lambda *_: GeneratorCoins(generator))
    assert p_value(generate(play, 2)) > 1e-3


@dataclass(frozen=True)
class GeneratorCoins:
    generator: torch.Generator

    def uniform(self, purpose: Purpose, index_BX: Tensor) -> Tensor:
        del purpose
        return torch.rand(index_BX.shape, generator=self.generator, dtype=torch.float64)


# Mutants of the streams.


@dataclass(frozen=True)
class OnePurpose:
    """Draft, acceptance and residual share their draws, as in an engine that keyed all three by (seed, position)."""

    seed_B: Tensor
    position_B: Tensor

    def uniform(self, purpose: Purpose, index_BX: Tensor) -> Tensor:
        del purpose
        return own_streams(self.seed_B, self.position_B).uniform(Purpose.DRAFT, index_BX)


@dataclass(frozen=True)
class KeyedByToken:
    """Draws belong to the token's own position, so that a later round meets the coins of an earlier one again."""

    seed_B: Tensor
    position_B: Tensor

    def uniform(self, purpose: Purpose, index_BX: Tensor) -> Tensor:
        shape = (-1, *[1] * (index_BX.dim() - 1))
        position_BX = self.position_B.view(shape) + index_BX
        return uniform(fold_key(self.seed_B.view(shape), position_BX, purpose), torch.zeros_like(index_BX))


@pytest.mark.parametrize("rule", [rejection, block])
def test_shared_noise_is_biased(rule: Callable[..., Verdict]) -> None:
    assert p_value(generate(ByRatio(rule, OnePurpose), 3)) < 1e-9


def test_block_with_coins_keyed_by_token_is_biased() -> None:
    assert p_value(generate(ByRatio(block, KeyedByToken), 3)) < 1e-9


# Coupling: the tokens are a function of the target and the noise alone.


@pytest.mark.parametrize("K", [1, 2, 5])
def test_coupled_tokens_are_the_same_for_any_number_of_drafts(K: int) -> None:
    assert torch.equal(generate(by_coupling, K, 2000), generate(by_coupling, 0, 2000))
