"""From a request to vLLM's sampling parameters, as data; what vLLM would quietly sample otherwise is refused here."""

from __future__ import annotations

import hashlib
from typing import Any

from bebop.core.sampling import Sampling
from bebop.engines.base import Request
from bebop.engines.vllm.options import VllmOptions
from bebop.errors import UserError

MIN_TEMPERATURE = 0.01
"""vLLM raises smaller temperatures above 0 to this one."""


def sampling_parameters(request: Request, index: int, options: VllmOptions) -> dict[str, Any]:
    """Arguments of vLLM's ``SamplingParams`` for completion ``index`` of a request. UserError for what it lacks.

    Stop strings are left out: vLLM would cut its text, not its tokens, at them, so the completion is cut afterwards.
    """
    check_request(request, options)
    sampling = request.sampling
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": derived_seed(request.seed, index),
        "max_tokens": request.max_tokens,
        "stop_token_ids": list(request.stop_token_ids),
        "ignore_eos": True,
        "logprobs": -1 if options.record_distribution else 0,
        "detokenize": False,
        "skip_special_tokens": False,
    }


def derived_seed(seed: int, index: int) -> int:
    """A seed of 63 bits for one completion of a request."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_request(request: Request, options: VllmOptions) -> None:
    """UserError for a request that vLLM would refuse, or answer otherwise than asked."""
    name = f"request {request.id!r}"
    k = options.num_draft_tokens
    if request.num_draft_tokens not in (None, k):
        raise UserError(
            f"{name} asks for {request.num_draft_tokens} draft tokens and vLLM has one number for all requests, {k} "
            "here; leave it out of the request, or open another engine"
        )
    _check_sampling(name, request.sampling, speculates=k > 0)


def _check_sampling(name: str, sampling: Sampling, *, speculates: bool) -> None:
    if 0 < sampling.temperature < MIN_TEMPERATURE:
        raise UserError(
            f"{name} has temperature {sampling.temperature}, which vLLM raises to {MIN_TEMPERATURE}; "
            "use 0 or at least that"
        )
    if sampling.min_p > 0 and speculates:
        raise UserError(f"{name} has min_p, which vLLM refuses with draft tokens; use top_p, or num_draft_tokens=0")
    if sampling.min_p > 0 and sampling.top_p < 1:
        raise UserError(
            f"{name} has both min_p and top_p, which vLLM applies in another order than Bebop; use one of the two"
        )
