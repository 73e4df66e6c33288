"""What both ways to vLLM do with requests: their order, their checks, the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bebop.engines.base import Completion, Request
from bebop.engines.vllm.outputs import Decode
from bebop.errors import UserError
from bebop.models.loading import load_tokenizer
from bebop.models.spec import PolicySpec

IDLE_SECONDS = 0.001
"""Pause between two looks at a source that has no request ready."""

Stream = Callable[[Iterable[Request | None]], Iterator[Completion]]


def in_order(requests: Iterable[Request], stream: Stream) -> list[Completion]:
    """All that ``stream`` makes of the requests, ordered by request, then by completion index."""
    wanted = list(requests)
    order = {request.id: place for place, request in enumerate(wanted)}
    if len(order) < len(wanted):
        raise UserError("two requests of one call have the same id; give each its own")
    return sorted(stream(wanted), key=lambda done: (order[done.request_id], done.index))


def decoder_of(spec: PolicySpec) -> Decode | None:
    """Token ids to text by the policy's tokenizer, where its directory has one."""
    tokenizer = load_tokenizer(spec.directory, spec.config)
    return None if tokenizer is None else lambda tokens: str(tokenizer.decode(tokens))
