"""The audit's statistics: the right tail, the right noise, and a correction that keeps its promise."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2

from bebop.audit.fit import chi_square_tail, fit, holm, pooled
from bebop.audit.laws import Law, Tokens

LAW = Law(masses={(0,): 0.5, (1,): 0.3, (2,): 0.15, (3,): 0.05})


def draws(law: Law, num_samples: int, seed: int) -> list[Tokens]:
    return law.sample(num_samples, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("statistic", "freedom"), [(0.0, 3), (3.2, 1), (70.0, 15), (900.0, 15), (500.0, 511)])
def test_the_tail_is_the_chi_square_laws(statistic: float, freedom: int) -> None:
    assert chi_square_tail(statistic, freedom) == pytest.approx(chi2.sf(statistic, freedom), rel=1e-9, abs=1e-300)


def test_without_freedom_nothing_is_rejected() -> None:
    certain = Law(masses={(4, 2): 1.0})
    assert fit("", [(4, 2)] * 50, certain).p_value == 1
    assert fit("", [(4, 2)] * 50, certain).distance == 0


def test_p_values_of_exact_samples_are_uniform() -> None:
    p_values = sorted(fit("", draws(LAW, 400, seed), LAW).p_value for seed in range(200))
    largest_gap = max(abs(value - place / 200) for place, value in enumerate(p_values))
    assert largest_gap < 1.63 / math.sqrt(200)  # Kolmogorov's 1% bound


@pytest.mark.parametrize("num_samples", [20, 400, 20_000])
def test_the_noise_is_what_exact_samples_show_on_average(num_samples: int) -> None:
    fits = [fit("", draws(LAW, num_samples, seed), LAW) for seed in range(300)]
    mean = sum(one.distance for one in fits) / len(fits)
    assert fits[0].noise == pytest.approx(mean, rel=0.07)


def test_a_bias_is_rejected_and_measured() -> None:
    biased = Law(masses={(0,): 0.45, (1,): 0.35, (2,): 0.15, (3,): 0.05})
    found = fit("", draws(biased, 20_000, 1), LAW)
    assert found.p_value < 1e-12
    assert found.distance == pytest.approx(0.05, abs=0.01)


def test_one_sample_of_the_impossible_is_enough() -> None:
    found = fit("", [*draws(LAW, 999, 2), (7,)], LAW)
    assert found.p_value == 0
    assert found.outside == pytest.approx(1e-3)
    assert pooled("", [found, fit("", draws(LAW, 1000, 3), LAW)]).p_value == 0


def test_the_rest_is_a_cell_like_others() -> None:
    lumped = Law(masses={(0,): 0.5, (1,): 0.3}, rest=0.2)
    samples = draws(LAW, 5000, 4)
    assert fit("", samples, lumped).p_value > 0.01
    assert fit("", [*samples, *[(3,)] * 500], lumped).p_value < 1e-6
    assert fit("", [None if token > 1 else (token,) for (token,) in samples], lumped).p_value > 0.01


def test_small_biases_add_up_in_a_pooled_fit() -> None:
    biased = Law(masses={(0,): 0.48, (1,): 0.3, (2,): 0.15, (3,): 0.07})
    fits = [fit("", draws(biased, 500, seed), LAW) for seed in range(40)]
    assert min(holm([one.p_value for one in fits])) > 1e-4
    assert pooled("", fits).p_value < 1e-9


def test_holm_by_hand() -> None:
    """Holm's procedure on four p-values: 4 x 0.01, 3 x 0.02, 2 x 0.03, 1 x 0.5, made monotone."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
