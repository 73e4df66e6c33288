"""Chances and counts of acceptance, each against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bebop.core.acceptance import (
    AcceptanceCounter,
    coupling_acceptance,
    coupling_matches,
    coupling_matches_pairwise,
    entropy,
    expected_accepted,
    expected_accepted_rejection,
    overlap,
    rejection_beats_target_only,
    target_only_acceptance,
)
from bebop.core.streams import coupling_noise
from bebop.core.verify import couple


def pair(num_rows: int, V: int, seed: int = 0, zeros: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two batches [N, V] of distributions in float64, some of whose tokens have no mass."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, num_rows, V), generator=generator, dtype=torch.float64) * 2
    is_out = torch.rand(logits.shape, generator=generator) < zeros
    is_out[..., 0] = False
    target_NV, draft_NV = logits.masked_fill(is_out, -math.inf).softmax(dim=-1)
    return target_NV, draft_NV


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**31), V=st.integers(1, 12), zeros=st.sampled_from([0.0, 0.5, 1.0]))
def test_coupling_in_closed_form_is_the_double_sum_within_its_bounds(seed: int, V: int, zeros: float) -> None:
    target_NV, draft_NV = pair(4, V, seed, zeros)
    matches_NV = coupling_matches(target_NV, draft_NV)
    torch.testing.assert_close(matches_NV, coupling_matches_pairwise(target_NV, draft_NV), atol=1e-12, rtol=1e-12)
    distance_N = 1 - overlap(target_NV, draft_NV)
    accepted_N = coupling_acceptance(target_NV, draft_NV)
    assert (accepted_N <= 1 - distance_N + 1e-12).all()
    assert (accepted_N >= (1 - distance_N) / (1 + distance_N) - 1e-12).all()


def test_equal_and_tied_distributions_couple_always() -> None:
    target_NV, _ = pair(3, 7, zeros=0.3)
    torch.testing.assert_close(coupling_matches(target_NV, target_NV), target_NV)
    one_hot = torch.tensor([[0.0, 1.0, 0.0]])
    assert coupling_acceptance(one_hot, one_hot).item() == 1
    assert coupling_acceptance(one_hot, torch.tensor([[1.0, 0.0, 0.0]])).item() == 0


def test_coupled_draws_match_as_often_as_the_closed_form_says() -> None:
    num_draws, V = 100_000, 5
    target_NV, draft_NV = pair(1, V, seed=3, zeros=0.2)
    noise_BV = coupling_noise(torch.arange(num_draws), torch.zeros(num_draws, dtype=torch.int64), V)
    target_B = couple(target_NV.expand(num_draws, V), noise_BV)
    draft_B = couple(draft_NV.expand(num_draws, V), noise_BV)
    share_V = target_B[target_B == draft_B].bincount(minlength=V) / num_draws
    matches_V = coupling_matches(target_NV, draft_NV)[0]
    error_V = (matches_V * (1 - matches_V) / num_draws).sqrt()
    assert ((share_V - matches_V).abs() <= 4.5 * error_V).all()


def test_expected_accepted_of_coupling_is_the_sum_over_matching_prefixes() -> None:
    """Independent depths: E = sum_l prod_{k<=l} A_k, found again from the target's own chains."""
    target_KV, draft_KV = pair(3, 4, seed=1)
    chains_CK = torch.cartesian_prod(*[torch.arange(4)] * 3)
    depth_K = torch.arange(3)
    weight_C = target_KV[depth_K, chains_CK].prod(dim=1)
    matches_KV, acceptance_K = coupling_matches(target_KV, draft_KV), coupling_acceptance(target_KV, draft_KV)
    survival_CK = matches_KV[depth_K, chains_CK] / target_KV[depth_K, chains_CK]
    found = (weight_C * expected_accepted(acceptance_K.expand(64, 3), survival_CK)).sum()
    torch.testing.assert_close(found, acceptance_K.cumprod(dim=0).sum())


def test_a_token_the_draft_excludes_ends_the_chain() -> None:
    overlap_NK = torch.tensor([[0.5, 0.25, 0.125]])
    draft_NK, target_NK = torch.tensor([[-1.0, -math.inf, -1.0]]), torch.tensor([[-2.0, -1.0, -1.0]])
    assert expected_accepted_rejection(overlap_NK, draft_NK, target_NK).item() == 0.75


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), V=st.integers(2, 8))
def test_rejection_beats_target_only_where_the_distance_says(seed: int, V: int) -> None:
    target_NV, draft_NV = pair(8, V, seed)
    distance_N = (target_NV - draft_NV).abs().sum(dim=-1) / 2
    best_N = draft_NV.argmax(dim=-1)
    expected_N = distance_N < 1 - target_NV[torch.arange(8), best_N]
    assert torch.equal(rejection_beats_target_only(target_NV, draft_NV), expected_N)
    torch.testing.assert_close(target_only_acceptance(target_NV, draft_NV), target_NV[torch.arange(8), best_N])
    torch.testing.assert_close(overlap(target_NV, draft_NV), 1 - distance_N)


def test_entropy_in_nats() -> None:
    probs_NV = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(probs_NV), torch.tensor([math.log(4), 0.0]))


def test_the_counter_says_which_acceptance_it_means() -> None:
    counter = AcceptanceCounter.of_rounds(num_accepted=[0, 1, 3, 1, 0], num_drafts=[3, 3, 3, 1, 0])
    assert counter.num_rounds == 5 and counter.num_drafted == 10 and counter.num_accepted == 5
    assert counter.num_drafted_K == (4, 3, 3)
    assert counter.num_reached_K == (4, 2, 1)
    assert counter.rate == 0.5
    assert counter.accept_length == 2.0
    assert counter.conditional_K == (3 / 4, 1 / 2, 1.0)
    assert counter.survival_K == (3 / 4, 1 / 3, 1 / 3)


rounds = st.lists(st.integers(0, 4).flatmap(lambda k: st.tuples(st.integers(0, k), st.just(k))), max_size=8)


@given(left=rounds, right=rounds)
def test_counters_add_as_their_rounds_do(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    def count(pairs: list[tuple[int, int]]) -> AcceptanceCounter:
        return AcceptanceCounter.of_rounds([a for a, _ in pairs], [k for _, k in pairs])

    assert count(left) + count(right) == count(left + right)


def test_a_counter_of_nothing_has_no_ratios() -> None:
    assert math.isnan(AcceptanceCounter().rate) and math.isnan(AcceptanceCounter().accept_length)
    assert math.isnan(AcceptanceCounter.of_rounds([0], [2]).conditional_K[1])


def test_accepting_more_than_was_drafted_is_refused() -> None:
    with pytest.raises(ValueError, match="more tokens than it drafted"):
        AcceptanceCounter.of_rounds([3], [2])
