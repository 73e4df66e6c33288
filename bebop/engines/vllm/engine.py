"""vLLM in this process behind the engine protocol.

Importing this module does not import vLLM; opening an engine does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from bebop.engines.base import Completion, DraftStats, Request, check_prompt
from bebop.engines.vllm.arguments import engine_arguments
from bebop.engines.vllm.environment import load_binding
from bebop.engines.vllm.options import VllmOptions
from bebop.engines.vllm.outputs import Piece, completion_of
from bebop.engines.vllm.progress import Progress
from bebop.engines.vllm.requests import IDLE_SECONDS, decoder_of, in_order
from bebop.engines.vllm.sampling import sampling_parameters
from bebop.engines.vllm.weights import WeightNames
from bebop.errors import UserError
from bebop.models.fingerprint import Fingerprint
from bebop.models.spec import read_spec


class VllmEngine:
    """vLLM's engine on the policy in ``directory``; see ``bebop.engines.base.Engine`` for the protocol.

    Completions carry no overlaps and no draft log-probs, and their random draws follow vLLM's streams: equal seeds give
    equal tokens only in equal company.
    """

    def __init__(self, directory: str | Path, options: VllmOptions | None = None, *, version: int = 0) -> None:
        self.options = options or VllmOptions()
        self.version = version
        self._spec = read_spec(Path(directory))
        self._names = WeightNames(self._spec)
        self._binding = load_binding(self.options)
        arguments = engine_arguments(self._spec, self.options, self._binding.find_runtime())
        self._vllm = self._binding.InProcess(arguments)
        self.max_context: int = self._vllm.max_context
        self._decode = decoder_of(self._spec)
        self._running: dict[str, Progress] = {}
        self._serial = 0
        self._streaming = False
        self._lock = threading.Lock()
        self._broken: str | None = None
        self._check_runner()

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Every completion of every request, ordered by request, then by completion index."""
        return in_order(requests, self.stream)

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions as they finish; a request is taken from the iterable when a row is free for it.

        Weights may be loaded between two completions, or from another thread: they take effect between steps.
        """
        if self._streaming:
            raise UserError("this engine is already streaming; exhaust or close the first stream")
        self._streaming = True
        source: Iterator[Request | None] | None = iter(requests)
        try:
            while source is not None or self._running:
                source = self._admit(source)
                with self._lock:
                    ended = self._step()
                yield from ended
        finally:
            self._streaming = False
            self._abort()

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Bring in the whole backbone, the whole head, or both as one transaction.

        Names are those of ``Engine.load_weights``; all are checked before the first tensor is sent. Tokens sampled from
        the next step on carry ``version``. Where vLLM fails half-way, the engine refuses to sample until a
        later update has gone through.
        """
        update = self._names.update(tensors)
        if update.draft and self.options.num_draft_tokens == 0:
            raise UserError("this engine drafts nothing and holds no head; leave the head out of the update")
        with self._lock:
            self._broken = (
                f"the update to version {version} failed half-way; send all weights again or open a new engine"
            )
            for part, is_draft in ((update.target, False), (update.draft, True)):
                if part:
                    self._vllm.update(part, draft=is_draft)
            self._vllm.forget_caches(running=self.options.recompute_cache)
            for progress in self._running.values():
                progress.starts = self.options.recompute_cache
            self._broken = None
            self.version = version

    def fingerprint(self) -> Fingerprint:
        """Digests of the tensors vLLM computes with, read back from it; the head's is None where it drafts nothing.

        UserError where vLLM's draft model computes with another embedding or lm_head than its target.
        """
        return self._names.fingerprint(self._vllm.digests())

    def held_digests(self) -> dict[str, dict[str, str]]:
        """sha256 of every tensor that drafting needs, read back from vLLM: group (head, embedding, lm_head) -> name."""
        return self._names.held(self._vllm.digests())

    def drafts(self) -> DraftStats:
        """Sums over everything since the engine was opened, from vLLM's own counters."""
        return self._vllm.counters().stats()

    def sleep(self) -> None:
        """Give back the device's memory; the weights wait in the host's."""
        self._refuse_sleep_on_cpu()
        self._vllm.sleep()

    def wake(self) -> None:
        """Take the memory again. Check ``fingerprint`` afterwards: releases of vLLM have lost the head here."""
        self._refuse_sleep_on_cpu()
        self._vllm.wake()

    def close(self) -> None:
        """Shut vLLM down."""
        self._vllm.close()

    def _admit(self, source: Iterator[Request | None] | None) -> Iterator[Request | None] | None:
        """Queue requests while rows are free; None when the source is exhausted."""
        while source is not None and len(self._running) < self.options.max_rows:
            request = next(source, _END)
            if request is _END:
                return None
            if isinstance(request, Request):
                self._add(request)
            elif self._running:
                return source
            else:
                time.sleep(IDLE_SECONDS)
        return source

    def _add(self, request: Request) -> None:
        check_prompt(request, self._spec.config.vocab_size, self.max_context)
        if request.stop_strings and self._decode is None:
            raise UserError(f"request {request.id!r} has stop strings and the policy no tokenizer; use stop_token_ids")
        for index in range(request.num_completions):
            parameters = sampling_parameters(request, index, self.options)
            key = f"{self._serial}"
            self._serial += 1
            self._vllm.add(key, request.prompt_tokens, parameters)
            self._running[key] = Progress(request=request, index=index, recorded=self.options.record_distribution)

    def _step(self) -> list[Completion]:
        """One step of vLLM; all of it is taken over before a caller can change the weights."""
        if self._broken is not None:
            raise UserError(self._broken)
        if not self._running:
            return []
        pieces = list(self._vllm.step())
        for piece in pieces:
            self._running[piece.key].absorb(piece, self.version)
        return [self._finish(piece) for piece in pieces if piece.finish is not None]

    def _finish(self, piece: Piece) -> Completion:
        progress = self._running.pop(piece.key)
        return completion_of(progress.request, progress.index, progress.finish(piece), self._decode)

    def _abort(self) -> None:
        """Drop what a stream left behind when it was closed early."""
        if self._running:
            self._vllm.abort(list(self._running))
            self._running.clear()

    def _check_runner(self) -> None:
        """vLLM may fall back to its first runner for reasons of its own; what is then ignored is refused."""
        engine_arguments(self._spec, self.options, replace(self._binding.find_runtime(), runner=self._vllm.runner))

    def _refuse_sleep_on_cpu(self) -> None:
        if self._binding.find_runtime().on_cpu:
            raise UserError("vLLM ignores sleep and wake on a CPU; close the engine to get its memory back")


_END = object()
