"""What frameworks call acceptance, and what that is in our words (`bebop.engines.vllm.counters.acceptance_metrics`)."""

from __future__ import annotations

from bebop.recipes.record import Metric

_SAMPLES = "mean over samples of each sample's ratio, samples without drafts counted as 0; ours divides sums by sums"
_SURVIVAL = "of all rounds, not of those that got there: unconditional"


def vllm_counters() -> tuple[Metric, ...]:
    """The counters of ``/metrics``; figures of a stretch of time come from their differences."""
    prefix = "vllm:spec_decode_num"
    return (
        Metric(theirs=f"{prefix}_accepted_tokens / {prefix}_draft_tokens", ours="acceptance_rate"),
        Metric(theirs=f"1 + {prefix}_accepted_tokens / {prefix}_drafts", ours="accept_length", note="bonus included"),
        Metric(
            theirs=f'{prefix}_accepted_tokens_per_pos{{position="i"}} / {prefix}_drafts',
            ours="survival@i+1",
            note=_SURVIVAL,
        ),
        Metric(
            theirs=f"{prefix}_accepted_tokens_per_pos, position i over position i-1",
            ours="conditional@i+1",
            note="what the paper's alpha is",
        ),
    )


def sglang_metrics() -> tuple[Metric, ...]:
    return (
        Metric(
            theirs="sglang:spec_accept_rate",
            ours="acceptance_rate",
            note="a gauge of the last log interval; wrong under adaptive steps, which count K for every round",
        ),
        Metric(
            theirs="sglang:spec_accept_length",
            ours="accept_length",
            note="a gauge too; avg_spec_accept_length of /server_info is cumulative",
        ),
        Metric(
            theirs="meta_info.spec_accept_length of a response",
            ours="accept_length",
            note="completion tokens over verifications, the prefill's token included: slightly high",
        ),
        Metric(
            theirs="meta_info.spec_correct_drafts_histogram", ours=None, note="gives survival@k when summed from k up"
        ),
    )


def verl_metrics() -> tuple[Metric, ...]:
    return (
        Metric(theirs="rollout/spec_accept_rate", ours="acceptance_rate", note=_SAMPLES),
        Metric(theirs="rollout/spec_accept_length", ours="accept_length", note=_SAMPLES),
    )


def slime_metrics() -> tuple[Metric, ...]:
    return (
        Metric(theirs="rollout/spec_accept_rate", ours="acceptance_rate", note=_SAMPLES),
        Metric(
            theirs="rollout/spec_accept_length",
            ours="accept_length",
            note="completion tokens over verifications, mean over samples",
        ),
    )


def skyrl_metrics() -> tuple[Metric, ...]:
    return (
        Metric(theirs="vllm/train/draft_acceptance_rate", ours="acceptance_rate"),
        Metric(theirs="vllm/train/draft_mean_acceptance_length", ours="accept_length"),
        Metric(theirs="vllm/train/draft_acceptance_rate_pos_k", ours="survival@k", note=_SURVIVAL),
    )


def nemo_rl_metrics() -> tuple[Metric, ...]:
    return (
        Metric(theirs="vllm/spec_acceptance_rate", ours="acceptance_rate"),
        Metric(theirs="vllm/spec_acceptance_length", ours="accept_length"),
        Metric(theirs="vllm/spec_acceptance_rate-pos-k", ours="survival@k", note=_SURVIVAL),
        Metric(
            theirs="mtp/mtp_k_acceptance_rate",
            ours=None,
            note="how often the head's likeliest token is the data's, in percent: no acceptance of rejection sampling",
        ),
    )
