"""What vLLM says of a completion becomes our records: the same as the embedded engine's for the same rounds."""

import math
import random
from dataclasses import replace

import pytest
import torch

from bebop.core.sampling import Sampling, distribution
from bebop.engines.base import Completion, DraftStats, Request, StopReason, TokenSource
from bebop.engines.embedded.rows import Block, Row
from bebop.engines.vllm.counters import SpecCounters, acceptance_metrics
from bebop.engines.vllm.outputs import PLAIN, Piece, Sampled, Step, completion_of, stats_of_steps
from bebop.engines.vllm.progress import Progress, interleave, measures
from bebop.errors import UserError

S, D, C, B = TokenSource.SAMPLED, TokenSource.DRAFTED, TokenSource.CORRECTED, TokenSource.BONUS
DRAW = random.Random(0)


def request(**settings: object) -> Request:
    defaults: dict[str, object] = {"id": "r", "prompt_tokens": (1, 2), "max_tokens": 100}
    return Request(**(defaults | settings))  # type: ignore[arg-type]


def sampled(num_tokens: int, steps: tuple[Step, ...] = (), *, length: bool = True) -> Sampled:
    values = tuple(-0.5 - i for i in range(num_tokens))
    return Sampled(
        tokens=tuple(range(10, 10 + num_tokens)),
        logprobs=values,
        raw_logprobs=values,
        entropies=(0.25,) * num_tokens,
        versions=(7,) * num_tokens,
        steps=steps,
        length=length,
    )


def made(num_tokens: int, steps: tuple[Step, ...] = (), **settings: object) -> Completion:
    return completion_of(request(**settings), 0, sampled(num_tokens, steps), spell)


def spell(tokens: list[int]) -> str:
    return "".join(chr(ord("a") + token - 10) for token in tokens)


def test_sources_follow_the_rounds() -> None:
    steps = (PLAIN, Step(drafted=3, accepted=3), Step(drafted=3, accepted=1), Step(drafted=3, accepted=0))
    assert made(8, steps).sources == (S, D, D, D, B, D, C, C)


def test_a_stop_cuts_the_last_round_and_its_counts_stay_whole() -> None:
    done = made(3, (PLAIN, Step(drafted=3, accepted=3)))
    assert done.sources == (S, D, D)
    assert done.drafts.accepted == (1, 1, 1)
    assert done.drafts.emitted == 3


def test_tokens_beyond_the_rounds_were_sampled_one_by_one() -> None:
    assert made(4, (PLAIN, Step(drafted=2, accepted=0))).sources == (S, C, S, S)


def test_rounds_are_counted_as_the_embedded_engine_counts_them() -> None:
    for _ in range(50):
        rounds = [Step(drafted=k, accepted=DRAW.randint(0, k)) for k in DRAW.choices((1, 2, 5), k=DRAW.randint(1, 9))]
        row = Row(request=request(), index=0, num_draft_tokens=None, max_context=10**6, decode=spell, tokens=[1, 2])
        for one in rounds:
            row.absorb(block_of(one), 7)
        row.stop_reason = StopReason.MAX_TOKENS
        reference = row.completion()
        done = made(len(reference.tokens), tuple(rounds))
        assert done.sources == reference.sources
        assert replace(done.drafts, overlaps=()) == replace(reference.drafts, overlaps=())


def block_of(step: Step) -> Block:
    size = step.accepted + 1
    values = [0.0] * size
    return Block(
        tokens=[5] * size, logprobs=values, raw_logprobs=values, entropies=values, num_accepted=step.accepted,
        num_drafts=step.drafted, finite=True, draft_logprobs=values[: step.drafted], overlaps=[],
    )  # fmt: skip


def test_without_drafts_every_token_is_a_round() -> None:
    drafts = made(4).drafts
    assert (drafts.rounds, drafts.emitted, drafts.drafted) == (4, 4, ())


def test_a_completion_ends_with_the_token_that_completes_a_stop_string() -> None:
    done = made(8, (PLAIN, Step(drafted=3, accepted=3), Step(drafted=3, accepted=2)), stop_strings=("cd",))
    assert (done.stop_reason, spell(list(done.tokens))) == (StopReason.STOP_STRING, "abcd")
    assert done.drafts.rounds == 1, "what came after the stop string is not counted"


def test_why_a_completion_ended() -> None:
    assert made(4, max_tokens=4).stop_reason is StopReason.MAX_TOKENS
    assert made(4, max_tokens=5).stop_reason is StopReason.CONTEXT
    ended = completion_of(request(), 0, sampled(4, length=False), None)
    assert ended.stop_reason is StopReason.STOP_TOKEN


def test_logits_that_are_not_finite_end_a_completion_before_them() -> None:
    broken = replace(sampled(4), logprobs=(-1.0, -1.0, math.nan, -1.0))
    done = completion_of(request(), 0, broken, None)
    assert (done.stop_reason, len(done.tokens)) == (StopReason.NOT_FINITE, 2)


def test_at_temperature_0_behaviour_log_probs_are_0_and_the_raw_ones_are_vllms() -> None:
    done = made(3, sampling=Sampling(temperature=0.0))
    assert (done.logprobs, done.entropies) == ((0.0,) * 3, (0.0,) * 3)
    assert done.raw_logprobs == (-0.5, -1.5, -2.5)


def test_raw_log_probs_are_the_processed_ones_only_where_nothing_is_processed() -> None:
    unknown = replace(sampled(3), raw_logprobs=(math.nan,) * 3)
    assert completion_of(request(), 0, unknown, None).raw_logprobs == unknown.logprobs
    for sampling in (Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.9)):
        assert all(map(math.isnan, completion_of(request(sampling=sampling), 0, unknown, None).raw_logprobs))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_raw_log_probs_and_entropies_come_out_of_the_whole_distribution(temperature: float) -> None:
    logits_V = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
    sampling = Sampling(temperature=temperature)
    probs_V = distribution(logits_V[None], sampling)[0]
    raw, entropy = measures(dict(enumerate(probs_V.log().tolist())), 4, sampling)
    assert raw == pytest.approx(float(logits_V.log_softmax(-1)[4]), abs=1e-12)
    assert entropy == pytest.approx(float(-(probs_V * probs_V.log()).sum()), abs=1e-12)


def test_truncation_hides_the_raw_log_prob_but_not_the_entropy() -> None:
    sampling = Sampling(top_k=2)
    raw, entropy = measures({0: math.log(0.5), 1: math.log(0.5), 2: -math.inf}, 0, sampling)
    assert math.isnan(raw)
    assert entropy == pytest.approx(math.log(2))


def test_pieces_add_up_and_carry_the_version_they_were_sampled_under() -> None:
    progress = Progress(request=request(), index=0, recorded=False)
    progress.absorb(piece((4,)), 1)
    progress.absorb(piece((5, 6)), 1)
    progress.starts = True
    progress.absorb(piece((7,)), 2)
    last = piece((8, 9, 10), finish="length", rounds=(Step(drafted=3, accepted=1), Step(drafted=3, accepted=2)))
    progress.absorb(last, 2)
    whole = progress.finish(last)
    assert whole.tokens == (4, 5, 6, 7, 8, 9, 10)
    assert whole.versions == (1, 1, 1, 2, 2, 2, 2)
    assert whole.steps == (PLAIN, last.rounds[0], PLAIN, last.rounds[1])
    assert whole.length


def piece(tokens: tuple[int, ...], finish: str | None = None, rounds: tuple[Step, ...] = ()) -> Piece:
    return Piece(
        key="0", tokens=tokens, distributions=tuple({t: -1.0} for t in tokens), finish=finish, rounds=rounds
    )  # fmt: skip


def test_steps_beyond_the_rounds_had_no_drafts() -> None:
    one = Step(drafted=3, accepted=3)
    assert interleave([True, False, False], (one,)) == (PLAIN, one, PLAIN)


def counters_of(rounds: list[Step], depth: int) -> SpecCounters:
    """What vLLM would count (vllm/v1/spec_decode/metrics.py)."""
    return SpecCounters(
        drafts=len(rounds),
        draft_tokens=sum(one.drafted for one in rounds),
        accepted_tokens=sum(one.accepted for one in rounds),
        accepted_per_position=tuple(sum(one.accepted > k for one in rounds) for k in range(depth)),
    )


def test_counters_and_rounds_say_the_same() -> None:
    rounds = [Step(drafted=3, accepted=DRAW.randint(0, 3)) for _ in range(40)]
    emitted = sum(one.accepted + 1 for one in rounds)
    stats = counters_of(rounds, 3).stats()
    assert replace(stats, overlaps=()) == replace(stats_of_steps(rounds, emitted), overlaps=())


def test_vllms_positions_are_survival_and_ours_conditional() -> None:
    stats = SpecCounters(drafts=10, draft_tokens=20, accepted_tokens=12, accepted_per_position=(8, 4)).stats()
    assert stats.reached == (10, 8)
    metrics = acceptance_metrics(stats)
    assert metrics["conditional@2"] == 0.5
    assert metrics["survival@2"] == metrics["vllm/per_position_acceptance_rate@1"] == 0.4
    assert metrics["accept_length"] == metrics["vllm/mean_acceptance_length"] == 2.2
    assert metrics["acceptance_rate"] == metrics["vllm/draft_acceptance_rate"] == 0.6


def test_rounds_of_different_lengths_cannot_be_taken_apart() -> None:
    rounds = [Step(drafted=3, accepted=3), Step(drafted=1, accepted=1)]
    with pytest.raises(UserError, match="which positions were left out"):
        counters_of(rounds, 3).stats()


def test_counters_are_read_from_a_servers_metrics_page() -> None:
    labels = '{engine="0",model_name="m"}'
    page = f"""
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{labels} 7.0
vllm:spec_decode_num_drafts_created{labels} 1.7e+09
vllm:spec_decode_num_draft_tokens_total{labels} 14.0
vllm:spec_decode_num_accepted_tokens_total{labels} 5.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="0"}} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="1"}} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="1",model_name="m",position="0"}} 2.0
vllm:num_requests_running{labels} 0.0
"""
    counters = SpecCounters.of_text(page.splitlines())
    assert counters == SpecCounters(drafts=7, draft_tokens=14, accepted_tokens=5, accepted_per_position=(6, 1))
    assert counters - SpecCounters(drafts=2, draft_tokens=4, accepted_tokens=1) == SpecCounters(
        drafts=5, draft_tokens=10, accepted_tokens=4, accepted_per_position=(6, 1)
    )
    assert SpecCounters().stats() == DraftStats()
