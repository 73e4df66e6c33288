"""Predictions against the clock, on the shipped `tiny` policy: within 20%."""

import pytest

from bebop.bench.decode import DecodeBench, bench_decode, task_prompts
from bebop.models.policy import load_policy, recommended_dtype
from bebop.plan.decoding import plan_batch
from bebop.plan.measurement import Wanted, measure
from bebop.tasks.chat import chat_of

pytestmark = pytest.mark.slow

BATCH, DRAFTS = 4, 3
"""Neither is in the plan's measurement: both are interpolated."""


def test_decoding_is_predicted_within_20_percent() -> None:
    policy = load_policy("tiny", dtype=recommended_dtype("cpu"))
    wanted = Wanted(batches=(1, 8), max_drafts=5)
    assert DRAFTS == 3 and (BATCH, DRAFTS) not in [(b, k) for b in wanted.batches for k in wanted.draft_lengths]
    measured = measure(policy, wanted, lambda _: None)
    predicted = plan_batch(measured.costs, measured.acceptance, BATCH, 5)
    bench = DecodeBench(
        batches=(BATCH,),
        draft_lengths=(0, DRAFTS),
        tokens=128,
        repetitions=5,
        generate=False,
        stop_token_ids=chat_of(policy.tokenizer).stop_tokens,
    )
    prompts = task_prompts(policy, "math", 40)[-bench.num_prompts :]
    found = bench_decode(policy, prompts, bench, lambda _: None)["batches"][str(BATCH)]
    length, speed_up = (
        found["arms"][f"k{DRAFTS}"]["accept_length"],
        found["decode_speed_over_k0"][f"k{DRAFTS}"]["median"],
    )
    print(
        f"batch {BATCH}, K = {DRAFTS}: accept length {predicted.accept_lengths[DRAFTS]:.2f} predicted, {length:.2f} "
        f"measured; speed-up {predicted.speed_ups[DRAFTS]:.2f} predicted, {speed_up:.2f} measured"
    )
    assert predicted.accept_lengths[DRAFTS] == pytest.approx(length, rel=0.2)
    assert predicted.speed_ups[DRAFTS] == pytest.approx(speed_up, rel=0.2)
