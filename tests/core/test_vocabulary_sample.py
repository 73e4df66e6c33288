"""A loss on a sample of the vocabulary: unbiased partition functions, and the whole loss where all tokens are drawn.

Shapes: N chains, K depths, H hidden size, S tokens of the sample, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from fused_regimes import Batch, random_batch, value_and_gradient
from torch import Tensor

from bebop.core.chains import TemperatureMixture, plain_loss
from bebop.core.fused import fused_loss
from bebop.core.objectives import OBJECTIVES
from bebop.core.vocabulary_sample import EXTRA_COLUMNS, VocabularySample, restricted, sample_vocabulary

VOCABULARY = 9


def on_sample(batch: Batch, sample: VocabularySample, temperature: float = 1.0) -> Batch:
    chains, weight_SH = restricted(batch.chains, batch.head_weight_VH, sample, temperature)
    return Batch(chains=chains, head_weight_VH=weight_SH, mixture=TemperatureMixture(temperatures=(temperature,)))


def unlabelled(batch: Batch) -> Batch:
    """No depth counts, so any tokens may take part."""
    mask_NK = torch.zeros_like(batch.chains.tokens_NK, dtype=torch.bool)
    return replace(batch, chains=replace(batch.chains, depth_mask_NK=mask_NK))


def everything(vocab_size: int, always: list[int]) -> VocabularySample:
    rng = torch.Generator().manual_seed(1)
    return sample_vocabulary(torch.tensor(always, dtype=torch.long), vocab_size, vocab_size - len(always), rng)


def every_sample(always: list[int], num_drawn: int) -> list[VocabularySample]:
    """Each equally likely."""
    others = [token for token in range(VOCABULARY) if token not in always]
    found = []
    for drawn in combinations(others, num_drawn):
        tokens = sorted([*always, *drawn])
        logs = [0.0 if token in always else math.log(len(others) / num_drawn) for token in tokens]
        found.append(VocabularySample(tokens_S=torch.tensor(tokens), log_multiplicity_S=torch.tensor(logs)))
    return found


@pytest.mark.parametrize("loss", [plain_loss, fused_loss])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_sample_of_all_tokens_is_the_whole_vocabulary(name, loss):
    batch = random_batch(vocabulary=37)
    whole, whole_NKH = value_and_gradient(plain_loss, batch, OBJECTIVES[name])
    for always in ([], [0, 5, 36]):
        part, part_NKH = value_and_gradient(loss, on_sample(batch, everything(37, always)), OBJECTIVES[name])
        torch.testing.assert_close(part.loss_N, whole.loss_N, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(part_NKH[..., :-EXTRA_COLUMNS], whole_NKH, rtol=1e-9, atol=1e-12)


def partition(states_NKH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    return (states_NKH @ weight_VH.T / temperature).exp().sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_partition_functions_are_unbiased(temperature):
    batch = unlabelled(random_batch(vocabulary=VOCABULARY))
    parts = [on_sample(batch, sample, temperature) for sample in every_sample([2, 3], 3)]
    sums = torch.stack([partition(one.chains.draft_states_NKH, one.head_weight_VH, temperature) for one in parts])
    whole = partition(batch.chains.draft_states_NKH, batch.head_weight_VH, temperature)
    assert len(parts) == math.comb(7, 3)
    assert sums.std(0).min() > 0.01 * whole.min()
    torch.testing.assert_close(sums.mean(0), whole, rtol=1e-6, atol=0.0)


def test_forgetting_what_a_drawn_token_stands_for_is_biased():
    batch = unlabelled(random_batch(vocabulary=VOCABULARY))
    plainly = [replace(one, log_multiplicity_S=torch.zeros(5)) for one in every_sample([2, 3], 3)]
    sums = [on_sample(batch, one) for one in plainly]
    mean = torch.stack([partition(one.chains.draft_states_NKH, one.head_weight_VH, 1.0) for one in sums]).mean(0)
    assert (mean < 0.95 * partition(batch.chains.draft_states_NKH, batch.head_weight_VH, 1.0)).all()


@pytest.mark.parametrize("num_drawn", [5, 80])
def test_half_precision_keeps_what_a_drawn_token_stands_for(num_drawn):
    """Rounded to bfloat16 alone, the logarithm would be off by up to 2^-8 of itself in every step."""
    batch = unlabelled(random_batch(vocabulary=1000).to(torch.bfloat16))
    sample = sample_vocabulary(torch.tensor([3]), 1000, num_drawn, torch.Generator().manual_seed(0))
    part = on_sample(batch, sample, temperature=0.7)
    assert part.head_weight_VH.dtype == torch.bfloat16
    term_S = part.head_weight_VH[:, 5:].double().sum(1)
    drawn = sample.log_multiplicity_S > 0
    assert term_S[~drawn].tolist() == [0.0]
    torch.testing.assert_close(term_S[drawn] / 0.7, sample.log_multiplicity_S[drawn].double(), rtol=1e-4, atol=0)
    assert bool((part.chains.draft_states_NKH[..., 5:] == 1).all())


def test_a_token_that_counts_must_take_part():
    batch = random_batch(vocabulary=VOCABULARY)
    tokens = batch.chains.tokens_NK.unique().tolist()
    assert 1 < len(tokens) < VOCABULARY
    found = on_sample(batch, everything(VOCABULARY, tokens)).chains
    assert torch.equal(found.tokens_NK, batch.chains.tokens_NK)
    (missing, *others) = tokens
    log_S = torch.zeros(len(others))
    without = VocabularySample(tokens_S=torch.tensor(others), log_multiplicity_S=log_S)
    with pytest.raises(ValueError, match="not in the sample"):
        on_sample(batch, without)
    masked = replace(batch.chains, depth_mask_NK=batch.chains.tokens_NK != missing)
    kept_NK = masked.counted_NK
    found = on_sample(replace(batch, chains=masked), without).chains
    assert torch.equal(without.tokens_S[found.tokens_NK[kept_NK]], batch.chains.tokens_NK[kept_NK])


def test_every_other_token_is_drawn_as_often():
    rng = torch.Generator().manual_seed(0)
    always = torch.tensor([1, 4])
    counts = torch.zeros(VOCABULARY)
    for _ in range(2000):
        sample = sample_vocabulary(always, VOCABULARY, 3, rng)
        assert torch.equal(sample.tokens_S, sample.tokens_S.unique())
        drawn = sample.log_multiplicity_S > 0
        assert torch.equal(sample.tokens_S[~drawn], always)
        torch.testing.assert_close(sample.log_multiplicity_S[drawn], torch.full((3,), math.log(7 / 3)))
        counts[sample.tokens_S] += 1
    others = counts[[0, 2, 3, 5, 6, 7, 8]] / 2000
    # Five standard errors of a share of 3/7.
    assert (others - 3 / 7).abs().max() < 5 * math.sqrt(3 / 7 * 4 / 7 / 2000)


@pytest.mark.parametrize("num_drawn", [0, 8])
def test_more_than_there_are_cannot_be_drawn(num_drawn):
    with pytest.raises(ValueError, match="cannot be drawn from 7"):
        sample_vocabulary(torch.tensor([1, 4]), VOCABULARY, num_drawn, torch.Generator())
