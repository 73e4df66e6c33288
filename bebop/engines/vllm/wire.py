"""Bodies and answers of vLLM's tokens-in, tokens-out endpoint (``/inference/v1/generate``), and its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bebop.core.sampling import Sampling
from bebop.engines.base import Request
from bebop.engines.vllm.options import VllmOptions
from bebop.engines.vllm.outputs import NAN, PLAIN, Sampled, Step
from bebop.engines.vllm.progress import measures
from bebop.engines.vllm.sampling import sampling_parameters
from bebop.errors import UserError

GENERATE = "/inference/v1/generate"


def generate_body(request: Request, index: int, key: str, options: VllmOptions) -> dict[str, Any]:
    """What to post for completion ``index`` of a request; ``key`` is the id to abort it by."""
    return {
        "request_id": key,
        "token_ids": list(request.prompt_tokens),
        "sampling_params": sampling_parameters(request, index, options),
    }


def sampled_of(answer: Mapping[str, Any], request: Request, first_version: int) -> Sampled:
    """The completion in an answer. ``first_version`` is that of weights no update has named yet."""
    choice = answer["choices"][0]
    content: Sequence[Mapping[str, Any]] = (choice.get("logprobs") or {}).get("content") or ()
    tokens = tuple(choice["token_ids"])
    if len(content) != len(tokens):
        raise UserError(f"the server gave {len(content)} log-probs for {len(tokens)} tokens; is it vLLM 0.32 or newer?")
    measured = [_measures(place, request.sampling) for place in content]
    return Sampled(
        tokens=tokens,
        logprobs=tuple(float(place["logprob"]) for place in content),
        raw_logprobs=tuple(raw for raw, _ in measured),
        entropies=tuple(entropy for _, entropy in measured),
        versions=_versions(choice.get("weight_versions") or (), len(tokens), first_version),
        steps=_steps(answer.get("metrics") or {}),
        length=choice.get("finish_reason") == "length",
    )


def check_server(config: Mapping[str, Any], options: VllmOptions, wanted: Mapping[str, Any]) -> None:
    """UserError where a server's configuration is not the one that ``options`` describe.

    ``config`` is its ``vllm_config``, ``wanted`` our ``speculative_config`` ({} without drafts).
    """
    mode = config["model_config"].get("logprobs_mode")
    if mode != "processed_logprobs":
        raise UserError(
            f"the server returns {mode}, which are not the sampling distribution's log-probs; "
            "start it with --logprobs-mode processed_logprobs"
        )
    running = config.get("speculative_config") or {}
    for name in ("num_speculative_tokens", "draft_sample_method", "rejection_sample_method"):
        if running.get(name) != wanted.get(name):
            raise UserError(
                f"the server runs with {name}={running.get(name)} and rule {options.rule!r} with "
                f"{options.num_draft_tokens} draft tokens asks for {wanted.get(name)}; start it with the options "
                "that bebop.engines.vllm.server.serve_command gives"
            )


def _measures(place: Mapping[str, Any], sampling: Sampling) -> tuple[float, float]:
    """Raw log-prob and entropy, where the whole distribution is there."""
    others = place.get("top_logprobs") or ()
    if len(others) < 2:
        return NAN, NAN
    distribution = {int(one["token_id"]): float(one["logprob"]) for one in others}
    return measures(distribution, int(place["token_id"]), sampling)


def _versions(spans: Sequence[Mapping[str, Any]], size: int, first: int) -> tuple[int, ...]:
    versions = [first] * size
    for span in spans:
        if str(span["version"]).isdigit():
            versions[span["start"] : span["end"]] = [int(span["version"])] * (span["end"] - span["start"])
    return tuple(versions[:size])


def _steps(metrics: Mapping[str, Any]) -> tuple[Step, ...]:
    """The prefill's token, then the verification rounds; nothing where the server does not say."""
    found = metrics.get("speculative_decoding") or {}
    rounds = zip(found.get("per_step_drafted") or (), found.get("per_step_accepted") or (), strict=True)
    return (PLAIN, *(Step(drafted=drafted, accepted=accepted) for drafted, accepted in rounds))
