"""The decoding bench reports what it measured; its timings are no test's business."""

import pytest
from small_policies import random_prompts, small_policy, with_echo_head

from bebop.bench.decode import DecodeBench, bench_decode
from bebop.errors import UserError


def test_figures_of_every_arm() -> None:
    policy = with_echo_head(small_policy("full"), 1.0)
    bench = DecodeBench(batches=(1, 3), draft_lengths=(0, 2, "auto"), tokens=12, repetitions=2)
    told: list[str] = []
    result = bench_decode(policy, random_prompts((4, 6)), bench, told.append)
    assert len(told) == 4
    assert set(result["batches"]) == {"1", "3"}
    for batch in result["batches"].values():
        assert set(batch["arms"]) == {"k0", "k2", "kauto", "generate"}
        assert set(batch["speed_over_k0"]) == {"k2", "kauto", "generate"}
        assert set(batch["decode_speed_over_k0"]) == {"k2", "kauto"}
        assert batch["arms"]["k0"]["accept_length"] == 1
        drafted = batch["arms"]["k2"]
        assert 1 < drafted["accept_length"] <= 3
        assert drafted["accept_length"] == pytest.approx(1 + sum(drafted["survival_by_depth"]))
        assert sum(drafted["round_shares"].values()) == pytest.approx(1)
        assert set(drafted["round_shares"]) == {"draft", "verify", "sampling", "bookkeeping"}
        speed, decode = drafted["tokens_per_second"], drafted["decode_tokens_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert 0 < drafted["prefill_share"] < 1
        assert decode["min"] > speed["min"] and decode["max"] > speed["max"]


def test_rows_are_refilled() -> None:
    policy = with_echo_head(small_policy("full"), 1.0)
    bench = DecodeBench(batches=(2,), draft_lengths=(0,), tokens=6, requests_per_row=4, repetitions=1, generate=False)
    arm = bench_decode(policy, random_prompts((4, 6, 5)), bench, lambda _: None)["batches"]["2"]["arms"]["k0"]
    assert arm["num_tokens"] == 2 * 4 * 6


def test_the_base_arm_is_required() -> None:
    with pytest.raises(UserError, match="must include 0"):
        DecodeBench(draft_lengths=(1, 2))
    with pytest.raises(UserError, match="1 or more"):
        DecodeBench(repetitions=0)
