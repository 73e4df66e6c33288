"""The fused loss equals the plain one, holds no [N, V], and the checks see the mistakes it could make.

Shapes: N chains, K depths, H hidden size, R rows of a tile, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from fused_regimes import REGIMES, check_against_plain, random_batch, value_and_gradient
from torch.utils._python_dispatch import TorchDispatchMode

from bebop.core import fused_rows
from bebop.core.chains import DraftChains, plain_loss
from bebop.core.curriculum import LossTerm, combine
from bebop.core.fused import Fusion, fused_loss, fusion_for
from bebop.core.fused_rows import ChunkedKernels
from bebop.core.objectives import OBJECTIVES

MIXED = combine(
    [LossTerm(weight=0.5), LossTerm(objective="lk_lambda", weight=0.3), LossTerm(objective="tv", decay=0.8)]
)
ALL = {**OBJECTIVES, "mixed": MIXED}


def small_tiles(vocabulary: int, rows: int = 13, columns: int = 8):
    """Tiles that divide neither the vocabulary nor the batch."""
    kernels = ChunkedKernels(vocabulary_tile=columns)
    return partial(fused_loss, fusion=Fusion(logits_bytes=8 * vocabulary * rows, kernels=kernels))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", ALL)
def test_equals_plain_in_value_gradient_and_statistics(name, regime):
    batch = REGIMES[regime]()
    loss = small_tiles(len(batch.head_weight_VH))
    check_against_plain(loss, batch, ALL[name], torch.float64, 1e-10)


@pytest.mark.parametrize("name", ALL)
def test_float32_is_within_rounding_of_float64(name):
    check_against_plain(small_tiles(37), random_batch(), ALL[name], torch.float32, 2e-5)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_inputs_lose_nothing_but_the_gradients_last_rounding(name):
    """Sums are float32: the value is float32-exact on the given inputs, the gradient is rounded once to bfloat16."""
    batch = random_batch(hidden=8)
    result, gradient_NKH = value_and_gradient(fused_loss, batch.to(torch.bfloat16), ALL[name])
    wide = batch.to(torch.bfloat16).to(torch.float64)
    expected, expected_NKH = value_and_gradient(plain_loss, wide, ALL[name])
    torch.testing.assert_close(result.loss_N.double(), expected.loss_N, rtol=2e-5, atol=2e-6)
    assert gradient_NKH.dtype == torch.bfloat16
    # Two roundings of 2^-8: the stored gradient and its product with the upstream weight.
    torch.testing.assert_close(gradient_NKH.double(), expected_NKH, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("name", ["ce", "kl", "reverse_kl", "e2e_tv", "lk_lambda"])
def test_the_vocabulary_that_matters(name):
    batch = random_batch(num_chains=2, num_depths=2, hidden=4, vocabulary=248_320)
    check_against_plain(fused_loss, batch, ALL[name], torch.float32, 5e-5)


@pytest.mark.parametrize("rows", [1, 5, 8, 1000])
@pytest.mark.parametrize("name", ["e2e_tv", "mixed"])
def test_tiling_changes_nothing(name, rows):
    batch = random_batch(num_chains=17)
    check_against_plain(small_tiles(37, rows=rows, columns=64), batch, ALL[name], torch.float64, 1e-12)


def test_positions_need_not_be_shared_or_sorted():
    batch = random_batch(num_chains=8)
    shuffled_NK = torch.randint(11, (8, 3), generator=torch.Generator().manual_seed(5))
    batch = replace(batch, chains=replace(batch.chains, positions_NK=shuffled_NK))
    check_against_plain(small_tiles(37), batch, OBJECTIVES["e2e_tv"], torch.float64, 1e-12)


def test_only_the_draft_states_get_a_gradient():
    batch = random_batch()
    weight_VH = batch.head_weight_VH.requires_grad_()
    target_PH = batch.chains.target_states_PH.requires_grad_()
    draft_NKH = batch.chains.draft_states_NKH.requires_grad_()
    fused_loss(batch.chains, weight_VH, OBJECTIVES["e2e_tv"]).mean.backward()
    assert weight_VH.grad is None and target_PH.grad is None
    assert draft_NKH.grad is not None and draft_NKH.grad.abs().sum() > 0


def test_without_gradient_the_value_is_the_same_and_no_gradient_is_made():
    batch = random_batch()
    expected, _ = value_and_gradient(fused_loss, batch, MIXED)
    found = fused_loss(batch.chains, batch.head_weight_VH, MIXED)
    torch.testing.assert_close(found.loss_N, expected.loss_N.detach())
    assert not found.loss_N.requires_grad


def test_a_batch_with_nothing_to_count_is_zero():
    batch = random_batch()
    nothing_NK = torch.zeros_like(batch.chains.tokens_NK, dtype=torch.bool)
    batch = replace(batch, chains=replace(batch.chains, depth_mask_NK=nothing_NK))
    result, gradient_NKH = value_and_gradient(fused_loss, batch, MIXED)
    assert (result.loss_N == 0).all() and (gradient_NKH == 0).all() and result.mean.item() == 0


def test_the_mean_is_per_counted_row():
    batch = REGIMES["masked"]()
    result = fused_loss(batch.chains, batch.head_weight_VH, OBJECTIVES["kl"])
    kl_R = result.statistics[0].kl_NK[result.counted_NK]
    assert result.mean.item() == pytest.approx(kl_R.mean().item())


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return result


@pytest.mark.parametrize("name", ["e2e_tv", "lk_lambda"])
def test_never_holds_the_logits_of_more_than_a_tile(name):
    batch = random_batch(num_chains=32, hidden=2, vocabulary=1001)
    rows = 12
    with LargestTensor() as fused:
        value_and_gradient(small_tiles(1001, rows=rows, columns=300), batch, OBJECTIVES[name])
    with LargestTensor() as plain:
        value_and_gradient(plain_loss, batch, OBJECTIVES[name])
    assert plain.elements >= 32 * 3 * 1001
    assert fused.elements <= rows * 1001


class CountingKernels(ChunkedKernels):
    """Notes the most logit rows that were held at once: draft, target, and a second copy where groups share them."""

    most = 0

    def statistics(self, tile, inverse_temperature):
        type(self).most = max(type(self).most, self.copies * len(tile.draft_RV) + len(tile.target_UV))
        return super().statistics(tile, inverse_temperature)


@pytest.mark.parametrize(("name", "copies"), [("e2e_tv", 1), ("lk_lambda", 2)])
@pytest.mark.parametrize("shared", [True, False])
def test_the_bound_on_logits_counts_target_rows_and_copies(name, copies, shared):
    batch = random_batch(num_chains=20)
    if not shared:
        positions_NK = torch.arange(60).view(20, 3)
        target_PH = batch.chains.target_states_PH[positions_NK.flatten() % 23]
        batch = replace(batch, chains=replace(batch.chains, positions_NK=positions_NK, target_states_PH=target_PH))
    kernels = type("Kernels", (CountingKernels,), {"copies": copies})()
    loss = partial(fused_loss, fusion=Fusion(logits_bytes=8 * 37 * 24, kernels=kernels))
    check_against_plain(loss, batch, OBJECTIVES[name], torch.float64, 1e-10)
    assert 12 <= kernels.most <= 24


def forget_below_mass(monkeypatch):
    original = fused_rows.ChunkedKernels.statistics

    def statistics(self, tile, inverse_temperature):
        rows = original(self, tile, inverse_temperature)
        return replace(rows, below_mass_R=torch.zeros_like(rows.below_mass_R))

    monkeypatch.setattr(fused_rows.ChunkedKernels, "statistics", statistics)


def forget_last_columns(monkeypatch):
    def columns(self, tile):
        size = tile.draft_RV.shape[1] // self.vocabulary_tile * self.vocabulary_tile
        return (slice(start, start + self.vocabulary_tile) for start in range(0, size, self.vocabulary_tile))

    monkeypatch.setattr(fused_rows.ChunkedKernels, "_columns", columns)


def forget_temperature_in_gradient(monkeypatch):
    original = fused_rows.ChunkedKernels.gradient

    def gradient(self, tile, terms, out_RV):
        original(self, tile, terms, out_RV)
        out_RV.mul_(terms[0].statistics.draft_lse_R.new_tensor(1 / terms[0].inverse_temperature))

    monkeypatch.setattr(fused_rows.ChunkedKernels, "gradient", gradient)


def split_ties(monkeypatch):
    original = fused_rows._term_gradient

    def gradient(tile, term, columns):
        strict = replace(term, statistics=replace(term.statistics, draft_lse_R=term.statistics.draft_lse_R - 1e-12))
        return original(tile, strict, columns)

    monkeypatch.setattr(fused_rows, "_term_gradient", gradient)


@pytest.mark.parametrize(
    ("mutate", "regime", "name"),
    [
        (forget_below_mass, "random", "tv"),
        (forget_last_columns, "random", "kl"),
        (forget_temperature_in_gradient, "warm_and_cold", "e2e_tv"),
        (split_ties, "some_ties", "tv"),
    ],
)
def test_the_comparison_sees_a_mutant(monkeypatch, mutate, regime, name):
    batch = REGIMES[regime]()
    loss = small_tiles(len(batch.head_weight_VH))
    check_against_plain(loss, batch, ALL[name], torch.float64, 1e-10)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_against_plain(loss, batch, ALL[name], torch.float64, 1e-10)


def test_fusion_for_a_cpu_is_the_chunked_one():
    assert isinstance(fusion_for(torch.device("cpu")).kernels, ChunkedKernels)


def test_mistakes_are_named():
    batch = random_batch()
    with pytest.raises(ValueError, match=r"must be \[V, 5\]"):
        fused_loss(batch.chains, batch.head_weight_VH[:, :3], OBJECTIVES["tv"])
    with pytest.raises(ValueError, match="one dtype"):
        fused_loss(batch.chains, batch.head_weight_VH.float(), OBJECTIVES["tv"])
    with pytest.raises(ValueError, match="positions_NK"):
        replace(batch.chains, positions_NK=batch.chains.positions_NK[:, :2])
    with pytest.raises(ValueError, match="target states"):
        replace(batch.chains, target_states_PH=batch.chains.target_states_PH[:, :2])
    with pytest.raises(ValueError, match="draft states"):
        replace(batch.chains, draft_states_NKH=batch.chains.draft_states_NKH[0])
    with pytest.raises(ValueError, match="vocabulary_tile"):
        ChunkedKernels(vocabulary_tile=0)
    with pytest.raises(ValueError, match="logits_bytes"):
        Fusion(logits_bytes=0)
    assert isinstance(batch.chains, DraftChains)
