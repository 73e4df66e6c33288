"""The samplers, one round at a time: the same coins in any batch, ragged drafts, greedy rows and the corner cases."""

import math

import pytest
import torch
from torch import Tensor

from bebop.core.sampling import GREEDY, Sampling, distribution, draw, stack_sampling
from bebop.core.streams import RoundStreams, coupling_noise
from bebop.core.verify import RULES, Verdict, couple, coupled, target_only


def random_round(B: int, K: int, num_tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draft_BKV = (torch.randn((B, K, num_tokens), generator=generator) * 2).softmax(dim=-1)
    noise_BJV = torch.randn((B, K + 1, num_tokens), generator=generator)
    target_BJV = (torch.cat([draft_BKV, draft_BKV.new_ones(B, 1, num_tokens)], dim=1).log() + noise_BJV).softmax(dim=-1)
    uniform_BK = torch.rand((B, K), generator=generator, dtype=torch.float64)
    return draw(draft_BKV, uniform_BK), draft_BKV, target_BJV


def streams_for(B: int) -> RoundStreams:
    return RoundStreams(seed_B=torch.arange(B) * 7, position_B=torch.arange(B) % 5)


def verdicts_equal(left: Verdict, right: Verdict) -> bool:
    return torch.equal(left.num_accepted_B, right.num_accepted_B) and torch.equal(left.next_token_B, right.next_token_B)


@pytest.mark.parametrize("name", RULES)
def test_a_row_of_a_batch_is_that_row_alone(name: str) -> None:
    tokens_BK, draft_BKV, target_BJV = random_round(64, 3, 300)
    together = RULES[name](tokens_BK, draft_BKV, target_BJV, streams_for(64))
    assert together.num_accepted_B.unique().numel() > 1
    rows = torch.arange(63, -1, -3)
    streams = RoundStreams(seed_B=streams_for(64).seed_B[rows], position_B=streams_for(64).position_B[rows])
    apart = RULES[name](tokens_BK[rows], draft_BKV[rows], target_BJV[rows], streams)
    assert torch.equal(together.num_accepted_B[rows], apart.num_accepted_B)
    assert torch.equal(together.next_token_B[rows], apart.next_token_B)


@pytest.mark.parametrize("name", RULES)
def test_short_drafts_are_judged_on_what_they_drafted_whatever_the_padding_holds(name: str) -> None:
    B, K = 90, 3
    tokens_BK, draft_BKV, target_BJV = random_round(B, K, 50)
    num_drafts_B = torch.arange(B) % (K + 1)
    is_padding_BK = torch.arange(K) >= num_drafts_B[:, None]
    ragged = RULES[name](
        tokens_BK.masked_fill(is_padding_BK, -1),
        draft_BKV.masked_fill(is_padding_BK[..., None], math.nan),
        target_BJV.masked_fill(torch.cat([is_padding_BK.new_zeros(B, 1), is_padding_BK], 1)[..., None], math.nan),
        streams_for(B),
        num_drafts_B,
    )
    for length in range(K + 1):
        rows = (num_drafts_B == length).nonzero().squeeze(1)
        streams = RoundStreams(seed_B=streams_for(B).seed_B[rows], position_B=streams_for(B).position_B[rows])
        alone = RULES[name](tokens_BK[rows, :length], draft_BKV[rows, :length], target_BJV[rows, : length + 1], streams)
        assert torch.equal(ragged.num_accepted_B[rows], alone.num_accepted_B)
        assert torch.equal(ragged.next_token_B[rows], alone.next_token_B)


def test_short_coupled_drafts_end_where_their_padding_begins() -> None:
    tokens_BK, _, target_BJV = random_round(30, 3, 50)
    noise_BJV = coupling_noise(torch.arange(30), torch.arange(4).expand(30, 4), 50)
    own_BJ = couple(target_BJV, noise_BJV)
    num_drafts_B = torch.arange(30) % 4
    verdict = coupled(own_BJ[:, :3], target_BJV, noise_BJV, num_drafts_B)
    assert torch.equal(verdict.num_accepted_B, num_drafts_B)
    assert torch.equal(verdict.next_token_B, own_BJ.gather(1, num_drafts_B[:, None]).squeeze(1))
    del tokens_BK


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_any_float_dtype_serves(name: str, dtype: torch.dtype) -> None:
    """Probabilities that every dtype holds exactly give the verdict of float32."""
    tokens_BK, draft_BKV, target_BJV = random_round(200, 3, 8)
    draft_BKV, target_BJV = ((probs * 16).round().clamp(min=1) / 16 for probs in (draft_BKV, target_BJV))
    in_float32 = RULES[name](tokens_BK, draft_BKV, target_BJV, streams_for(200))
    in_dtype = RULES[name](tokens_BK, draft_BKV.to(dtype), target_BJV.to(dtype), streams_for(200))
    assert verdicts_equal(in_float32, in_dtype)


def greedy_round(num_tokens: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of draft and target, drafts of both kinds of row, and which rows are greedy (every other one)."""
    B, K = 60, 3
    generator = torch.Generator().manual_seed(5)
    target_BJV = torch.randn((B, K + 1, num_tokens), generator=generator) * 2
    draft_BKV = target_BJV[:, :K] + torch.randn((B, K, num_tokens), generator=generator)
    table = stack_sampling([GREEDY if row % 2 == 0 else Sampling() for row in range(B)])
    target_BJV, draft_BKV = distribution(target_BJV, table), distribution(draft_BKV, table)
    tokens_BK = draw(draft_BKV, torch.rand((B, K), generator=generator))
    return tokens_BK, draft_BKV, target_BJV, torch.arange(B) % 2 == 0


@pytest.mark.parametrize("name", [*RULES, "coupled"])
def test_greedy_rows_of_a_mixed_batch_emit_the_targets_greedy_tokens(name: str) -> None:
    tokens_BK, draft_BKV, target_BJV, greedy_B = greedy_round()
    B, K = tokens_BK.shape
    if name == "coupled":
        noise_BJV = coupling_noise(torch.arange(B), torch.arange(K + 1).expand(B, K + 1), target_BJV.shape[-1])
        verdict = coupled(tokens_BK, target_BJV, noise_BJV)
    else:
        verdict = RULES[name](tokens_BK, draft_BKV, target_BJV, streams_for(B))
    best_BJ = target_BJV.argmax(dim=-1)
    run_B = (tokens_BK == best_BJ[:, :K]).long().cumprod(dim=1).sum(dim=1)
    assert run_B[greedy_B].unique().numel() > 2
    assert torch.equal(verdict.num_accepted_B[greedy_B], run_B[greedy_B])
    expected_B = best_BJ.gather(1, verdict.num_accepted_B[:, None]).squeeze(1)
    assert torch.equal(verdict.next_token_B[greedy_B], expected_B[greedy_B])


@pytest.mark.parametrize("name", RULES)
def test_a_token_the_target_excludes_is_never_emitted(name: str) -> None:
    tokens_BK, draft_BKV, target_BJV = random_round(3000, 3, 20)
    target_BJV = target_BJV.masked_fill(torch.arange(20) % 3 == 0, 0)
    target_BJV = target_BJV / target_BJV.sum(dim=-1, keepdim=True)
    verdict = RULES[name](tokens_BK, draft_BKV, target_BJV, streams_for(3000))
    assert (verdict.next_token_B % 3 != 0).all()
    is_accepted_BK = torch.arange(3) < verdict.num_accepted_B[:, None]
    assert (tokens_BK[is_accepted_BK] % 3 != 0).all()


def test_target_only_reads_no_draft_probabilities() -> None:
    tokens_BK, draft_BKV, target_BJV = random_round(50, 3, 30)
    told, untold = (target_only(tokens_BK, draft, target_BJV, streams_for(50)) for draft in (draft_BKV, None))
    assert verdicts_equal(told, untold)


@pytest.mark.parametrize("name", RULES)
def test_a_nan_row_gives_a_valid_token_and_harms_no_other(name: str) -> None:
    tokens_BK, draft_BKV, target_BJV = random_round(40, 3, 300)
    sound = RULES[name](tokens_BK, draft_BKV, target_BJV, streams_for(40))
    target_BJV[::2] = math.nan
    verdict = RULES[name](tokens_BK, draft_BKV, target_BJV, streams_for(40))
    assert torch.equal(verdict.num_accepted_B[1::2], sound.num_accepted_B[1::2])
    assert torch.equal(verdict.next_token_B[1::2], sound.next_token_B[1::2])
    assert ((verdict.next_token_B >= 0) & (verdict.next_token_B < 300)).all()


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_read_back_from_an_accelerator(name: str) -> None:
    """Tensors on the meta device have no values: reading one raises."""
    tokens_BK, draft_BKV, target_BJV = (tensor.to("meta") for tensor in random_round(6, 3, 300))
    streams = RoundStreams(seed_B=torch.arange(6, device="meta"), position_B=torch.arange(6, device="meta"))
    num_drafts_B = torch.full((6,), 2, device="meta")
    verdict = RULES[name](tokens_BK, draft_BKV, target_BJV, streams, num_drafts_B)
    assert verdict.next_token_B.shape == verdict.num_accepted_B.shape == (6,)
    noise_BJV = coupling_noise(streams.seed_B, torch.zeros((6, 4), dtype=torch.int64, device="meta"), 300)
    assert coupled(tokens_BK, target_BJV, noise_BJV, num_drafts_B).next_token_B.shape == (6,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_never_picks_a_token_without_mass(dtype: torch.dtype) -> None:
    probs_NV = torch.zeros(1000, 3000, dtype=dtype)
    probs_NV[:, 1234] = 1
    noise_NV = coupling_noise(torch.arange(1000), torch.zeros(1000, dtype=torch.int64), 3000)
    noise_NV[:, 0], noise_NV[:, 1234] = 44.5, -3.7
    assert (couple(probs_NV, noise_NV) == 1234).all()
