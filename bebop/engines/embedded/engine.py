"""The embedded engine: continuous batching over draft-and-verify rounds.

A round: rows are admitted, the head drafts K tokens, the backbone runs the pending token and the drafts in one
window, the rule decides how many stand and what follows them, and the host takes the result over.

Legend: B rows, K draft tokens, J = K + 1, W waiting positions, H hidden size.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from bebop.engines.base import Completion, Request, StopReason, check_prompt
from bebop.engines.embedded.attention import ragged
from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.clock import Phase, PhaseClock
from bebop.engines.embedded.contexts import Contexts
from bebop.engines.embedded.draft_length import AutoDraftLength
from bebop.engines.embedded.draft_vocabulary import DraftVocabulary
from bebop.engines.embedded.drafting import STORE_WIDTH, Drafter, Waiting
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.engines.embedded.prefilled import clear
from bebop.engines.embedded.prompts import Prefiller
from bebop.engines.embedded.report import EngineReport
from bebop.engines.embedded.rows import Row
from bebop.engines.embedded.scheduler import Scheduler
from bebop.engines.embedded.selection import Selector
from bebop.engines.embedded.weights import copy_weights
from bebop.errors import UserError
from bebop.models.policy import Policy

_IDLE_SECONDS = 0.001
"""Pause between two looks at a source that has no request ready; new weights are taken meanwhile."""


class EmbeddedEngine:
    """Draft-and-verify decoding of a policy in this process; see ``bebop.engines.base.Engine`` for the protocol.

    The engine uses the policy's modules as they are: ``load_weights`` changes them in place, and whoever else changes
    them must call it too, so that versions and caches stay right.
    """

    def __init__(self, policy: Policy, options: EmbeddedOptions | None = None, *, version: int = 0) -> None:
        self.policy = policy
        self.options = options or EmbeddedOptions()
        self.version = version
        self._device = policy.device
        self.clock = PhaseClock(policy.device, self.options.synchronise)
        self.max_context = self.options.max_context or policy.config.max_position_embeddings
        self._backbone = self._make_backbone()
        self._drafter = self._make_drafter()
        self._prefiller = self._make_prefiller()
        self._auto = AutoDraftLength(self.options.max_draft_tokens) if self.options.num_draft_tokens == "auto" else None
        self._selector: Selector | None = None
        self._report = EngineReport()
        self._lock = threading.Lock()
        self._streaming = False
        self._stale = False

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Every completion of every request, ordered by request, then by completion index."""
        wanted = list(requests)
        order = {request.id: place for place, request in enumerate(wanted)}
        if len(order) < len(wanted):
            raise UserError("two requests of one call have the same id; give each its own")
        return sorted(self.stream(wanted), key=lambda done: (order[done.request_id], done.index))

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions as they finish.

        A request is taken from the iterable when a row is free for it; None means that none is ready yet. Weights may
        be loaded between two completions, or from another thread at any time: they take effect between rounds.
        """
        if self._streaming:
            raise UserError(
                "this engine is already streaming; exhaust or close the first stream, or make a second engine"
            )
        self._streaming = True
        scheduler = Scheduler(requests, self.options.max_rows, self._make_row)
        try:
            with self._lock:
                self._take_weights()
                self._prefiller.contexts.forget_conversations()
            while not scheduler.is_done:
                with self._lock:
                    ended = self._round(scheduler)
                for row in ended:
                    yield row.completion()
                if not scheduler.rows:
                    time.sleep(_IDLE_SECONDS)
        finally:
            self._streaming = False

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into the policy; tokens sampled from now on carry ``version``.

        Names are those of ``policy.backbone.state_dict()``, and of ``policy.head.state_dict()`` after "head.". What is
        not named stays. The head has no embedding and lm_head of its own: it uses the backbone's, as they are.
        """
        with self._lock:
            copy_weights(self.policy, tensors)
            self._take_weights()
            self.version = version
            self._stale = True

    def report(self) -> EngineReport:
        """Counts, seconds per phase and memory since the engine was made."""
        return self._report.with_state(self.clock, self._prefiller, self._auto)

    def close(self) -> None:
        """Free the caches; the policy stays as it is."""
        self._backbone = self._make_backbone()
        self._drafter = self._make_drafter()
        self._prefiller = self._make_prefiller()
        self._selector = None

    @torch.inference_mode()
    def _round(self, scheduler: Scheduler) -> list[Row]:
        configs = [self.policy.config] + ([self._drafter.head.config] if self._drafter else [])
        with ragged(*configs):
            self.clock.start()
            self._refresh(scheduler)
            changed = scheduler.admit(self._prefiller, self._move, self._reserve)
            self.clock.lap(Phase.PREFILL)
            if not scheduler.rows:
                return []
            if changed or self._selector is None:
                vocabulary = self._drafter.vocabulary if self._drafter else None
                self._selector = Selector(self._backbone, vocabulary, self.options, scheduler.rows, self.clock)
            started = time.perf_counter()
            accepted = self._decode(scheduler.rows, self._selector)
            self._learn(scheduler.rows, accepted, time.perf_counter() - started)
            ended = self._retire(scheduler)
            self.clock.lap(Phase.BOOKKEEPING)
            return ended

    def _decode(self, rows: list[Row], selector: Selector) -> list[int]:
        """One draft-and-verify round; returns how many drafts each row accepted."""
        num_drafts_by_row = self._draft_lengths(rows)
        num_drafts = max(num_drafts_by_row)
        self._reserve(max(row.num_cached for row in rows) + num_drafts + 1)
        positions_B = self._tensor([row.num_cached for row in rows])
        selector.begin(positions_B, num_drafts_by_row)
        self.clock.lap(Phase.BOOKKEEPING)
        drafts_BK = self._draft(rows, num_drafts, selector)
        tokens_BJ = torch.cat([self._tensor([[row.tokens[-1]] for row in rows]), drafts_BK], dim=1)
        steps_J = torch.arange(num_drafts + 1, device=positions_B.device)
        longest = max(row.num_cached for row in rows) + num_drafts + 1
        hidden = self._backbone.window(tokens_BJ, positions_B[:, None] + steps_J, longest)
        self.clock.lap(Phase.VERIFY)
        outcome = selector.verify(hidden.output_BTH)
        self.clock.lap(Phase.SAMPLING)
        if self._drafter is not None:
            self._drafter.keep(hidden.draft_BTH, self._tensor([row.num_waiting for row in rows]))
        self.clock.lap(Phase.VERIFY)
        blocks = outcome.blocks()
        num_taken = [row.absorb(block, self.version) for row, block in zip(rows, blocks, strict=True)]
        self._backbone.commit(num_taken)
        self._report.add_round(selector.draft_bytes, blocks)
        return [block.num_accepted for block in blocks]

    def _draft(self, rows: list[Row], num_drafts: int, selector: Selector) -> Tensor:
        """Draft tokens [B, K]; the hidden states that waited for the head are used up when it runs."""
        must_rebuild = max(row.num_waiting for row in rows) >= STORE_WIDTH
        if self._drafter is None or (num_drafts == 0 and not must_rebuild):
            return torch.empty(len(rows), 0, dtype=torch.long, device=self._device)
        drafts_BK = self._drafter.draft(self._waiting(rows), num_drafts, selector.choose)
        for row in rows:
            row.num_waiting = 0
        self.clock.lap(Phase.DRAFT)
        return drafts_BK

    def _waiting(self, rows: list[Row]) -> Waiting:
        """What the head has not seen. A row without any (its prompt is one token) gets a made-up anchor at position 0,
        whose drafts are verified like any others and whose keys the next rebuild overwrites."""
        counts = [max(row.num_waiting, 1) for row in rows]
        width = max(counts)
        first = [row.num_cached - row.num_waiting for row in rows]
        tokens = [
            (row.tokens[start + 1 : start + 1 + count] + [row.tokens[-1]] * width)[:width]
            for row, start, count in zip(rows, first, counts, strict=True)
        ]
        return Waiting(
            tokens_BW=self._tensor(tokens),
            first_B=self._tensor(first),
            counts_B=self._tensor(counts),
            width=width,
            longest=max(start + count for start, count in zip(first, counts, strict=True)),
        )

    def _draft_lengths(self, rows: list[Row]) -> list[int]:
        """K of every row: the request's own, else the engine's."""
        if self._drafter is None:
            return [0] * len(rows)
        default = self._auto.choose(len(rows)) if self._auto else self.options.num_draft_tokens
        assert isinstance(default, int)
        return [default if row.num_draft_tokens is None else row.num_draft_tokens for row in rows]

    def _learn(self, rows: list[Row], accepted: list[int], seconds: float) -> None:
        if self._auto is not None and all(row.num_draft_tokens is None for row in rows):
            self._auto.observe(len(rows), self._selector.num_drafts if self._selector else 0, seconds, accepted)

    def _retire(self, scheduler: Scheduler) -> list[Row]:
        for slot, row in enumerate(scheduler.rows):
            if row.stop_reason is StopReason.NOT_FINITE:
                clear(self._backbone, self._drafter, [slot])
            elif row.stop_reason is not None and row.request.keep_cache and self.options.kept_memory:
                self._prefiller.keep(row.request.id, slot, row.tokens, row.num_waiting)
        return scheduler.retire()

    def _refresh(self, scheduler: Scheduler) -> None:
        """After new weights: run the rows in flight again, unless the old cache is to be kept."""
        if not self._stale:
            return
        self._stale = False
        if not self.options.recompute_cache:
            return
        self._prefiller.contexts.forget_conversations()
        scheduler.forget_prefills()
        live = [(slot, row) for slot, row in enumerate(scheduler.rows) if row.stop_reason is None]
        prefilled = self._prefiller.prefill([row.tokens for _, row in live])
        self._prefiller.fill([slot for slot, _ in live], prefilled)
        for (_, row), result in zip(live, prefilled, strict=True):
            row.num_waiting = result.num_waiting

    @torch.inference_mode()
    def _take_weights(self) -> None:
        """Refresh what was derived from weights; when a stream starts too, for weights that were changed in place."""
        self._prefiller.contexts.forget_prompts()
        self._backbone.refresh()
        if self._drafter is not None:
            self._drafter.refresh()

    def _make_row(self, request: Request, index: int) -> Row:
        self._check(request)
        return Row(
            request=request,
            index=index,
            num_draft_tokens=request.num_draft_tokens,
            max_context=self.max_context,
            decode=self._decode_text,
            tokens=list(request.prompt_tokens),
        )

    def _check(self, request: Request) -> None:
        """UserError for a request that this engine cannot run."""
        check_prompt(request, self.policy.config.vocab_size, self.max_context)
        limit = self.options.draft_limit
        if (request.num_draft_tokens or 0) > limit:
            remedy = "raise max_draft_tokens (at most 16)" if limit else "set its num_draft_tokens above 0 or to auto"
            raise UserError(
                f"request {request.id!r} asks for {request.num_draft_tokens} draft tokens and the engine allows "
                f"{limit}; {remedy}, or ask for fewer"
            )
        if request.stop_strings and self.policy.tokenizer is None:
            raise UserError(f"request {request.id!r} has stop strings and the policy no tokenizer; use stop_token_ids")

    def _decode_text(self, tokens: list[int]) -> str:
        assert self.policy.tokenizer is not None
        return str(self.policy.tokenizer.decode(tokens))

    def _make_backbone(self) -> Backbone:
        return Backbone(self.policy, self.options.max_rows, lean=self.options.lean)

    def _make_prefiller(self) -> Prefiller:
        contexts = Contexts(self.options.kept_memory)
        return Prefiller(self._backbone, self._drafter, self.options.prefill_tokens, contexts)

    def _make_drafter(self) -> Drafter | None:
        if self.options.draft_limit == 0:
            return None
        if self.policy.head is None:
            raise UserError(
                "this policy has no MTP head to draft with; set num_draft_tokens to 0 or load it with a head"
            )
        options = self.options
        vocabulary = DraftVocabulary.of(self.policy) if options.draft_vocabulary else None
        return Drafter(self.policy, self.policy.head, options.max_rows, vocabulary=vocabulary, lean=options.lean)

    def _reserve(self, num_positions: int) -> None:
        """Room for the longest row, the drafts, and the padding of a rebuild."""
        self._backbone.reserve(num_positions + STORE_WIDTH)
        if self._drafter is not None:
            self._drafter.cache.reserve(num_positions + STORE_WIDTH)

    def _move(self, source: int, target: int) -> None:
        self._backbone.move(source, target)
        if self._drafter is not None:
            self._drafter.move(source, target)

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, device=self._device)
