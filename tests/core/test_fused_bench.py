"""The figures of the loss bench at a tiny size: complete, and of the right order."""

from __future__ import annotations

import json

import pytest
import torch

from bebop.bench.loss import LossBench, bench_loss, eager_ce, eager_e2e_tv, peak_bytes, synthetic_chains
from bebop.core.chains import plain_loss
from bebop.core.objectives import OBJECTIVES

TINY = LossBench(num_chains=16, num_depths=2, hidden=4, vocabulary=500, rounds=1, logits_bytes=16_000)


@pytest.mark.parametrize(("name", "eager"), [("ce", eager_ce), ("e2e_tv", eager_e2e_tv)])
def test_what_is_timed_as_eager_is_the_objective(name, eager):
    chains, weight_VH = synthetic_chains(TINY)
    expected = plain_loss(chains, weight_VH, OBJECTIVES[name]).mean
    torch.testing.assert_close(eager(chains, weight_VH), expected)


def test_peak_counts_what_is_alive_at_once():
    def two_at_once():
        first = torch.ones(1000)
        second = first + 1
        del first, second
        torch.ones(1500)

    assert 8000 <= peak_bytes(two_at_once, torch.device("cpu")) < 9000


def test_figures_are_complete_and_fused_takes_less_memory():
    figures = json.loads(json.dumps(bench_loss(TINY, report=lambda line: None)))
    assert figures["rows"] == 32
    assert figures["seconds"].keys() == figures["peak_bytes"].keys()
    assert figures["ratios"]["time_over_ce_fused"].keys() == OBJECTIVES.keys()
    assert figures["ratios"]["peak_eager_over_fused"]["e2e_tv"] > 2


def test_impossible_benches_are_refused():
    with pytest.raises(ValueError, match="objectives"):
        LossBench(objectives=("ce", "e2e"))
    with pytest.raises(ValueError, match="dtype"):
        LossBench(dtype="float8")
