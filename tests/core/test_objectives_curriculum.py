"""Mixtures, decays, temperatures and warm-up as data."""

from __future__ import annotations

import pytest
import torch

from bebop.core.chains import TemperatureMixture
from bebop.core.curriculum import Curriculum, LossTerm, WarmUp, combine
from bebop.core.objectives import OBJECTIVES, Part, kl


@pytest.fixture
def problem():
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 3, 9, generator=rng, dtype=torch.float64)
    return logits[0], logits[1], torch.randint(9, (4, 3), generator=rng)


def test_a_mixture_is_the_weighted_sum(problem):
    mixed = combine([LossTerm(objective="e2e_tv", weight=0.7), LossTerm(objective="lk_lambda", weight=0.2)])
    expected_N = 0.7 * OBJECTIVES["e2e_tv"](*problem) + 0.2 * OBJECTIVES["lk_lambda"](*problem)
    torch.testing.assert_close(mixed(*problem), expected_N)


def test_decay_weighs_depths_in_proportion_and_averages_to_one(problem):
    target_NKV, draft_NKV, tokens_NK = problem
    per_depth_NK = torch.stack(
        [OBJECTIVES["tv"](target_NKV[:, [k]], draft_NKV[:, [k]], tokens_NK[:, [k]]) for k in range(3)], -1
    )
    weights_K = torch.tensor([1, 0.5, 0.25], dtype=torch.float64)
    expected_N = (per_depth_NK * weights_K).sum(-1) / weights_K.sum()
    torch.testing.assert_close(combine([LossTerm(objective="tv", decay=0.5)])(*problem), expected_N)


def test_warm_up_runs_until_the_threshold_and_never_again(problem):
    warm_up = WarmUp(terms=(LossTerm(objective="lk_lambda"),), until_overlap=0.6, until_share=0.5)
    curriculum = Curriculum(warm_up=warm_up)
    cold, warm = curriculum.objective(is_warm=False), curriculum.objective(is_warm=True)
    torch.testing.assert_close(cold(*problem), OBJECTIVES["lk_lambda"](*problem))
    torch.testing.assert_close(warm(*problem), OBJECTIVES["e2e_tv"](*problem))
    assert not curriculum.becomes_warm(0.59, share_done=0.49)
    assert curriculum.becomes_warm(0.6, share_done=0.0)
    assert curriculum.becomes_warm(0.0, share_done=0.5)


def test_without_warm_up_the_main_objective_starts(problem):
    curriculum = Curriculum(terms=(LossTerm(objective="kl"),), warm_up=None)
    torch.testing.assert_close(curriculum.objective(is_warm=False)(*problem), OBJECTIVES["kl"](*problem))
    assert curriculum.becomes_warm(0.0, share_done=0.0)


def test_temperature_shares_sum_to_one():
    assert TemperatureMixture().shares == (1.0,)
    assert TemperatureMixture(temperatures=(0.5, 1.0), weights=(3, 1)).shares == (0.75, 0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curriculum(terms=(LossTerm(objective="e2e_tvv"),)), "did you mean 'e2e_tv'"),
        (lambda: combine([]), "at least one term"),
        (lambda: WarmUp(until_overlap=1.0), "until_overlap"),
        (lambda: WarmUp(until_share=0.0), "until_share"),
        (lambda: Part(compose=kl, weight=-1.0), "weight"),
        (lambda: Part(compose=kl, decay=0.0), "decay"),
        (lambda: TemperatureMixture(temperatures=()), "temperatures"),
        (lambda: TemperatureMixture(temperatures=(0.0,)), "temperatures"),
        (lambda: TemperatureMixture(temperatures=(1.0,), weights=(1.0, 2.0)), "weights"),
        (lambda: TemperatureMixture(temperatures=(1.0,), weights=(0.0,)), "weights"),
    ],
)
def test_impossible_settings_fail_when_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()
