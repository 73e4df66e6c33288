"""Getting prompts into slots: prefilled once, copied into as many slots as share them, continued where a turn ended.

Legend: R rows of a prefill, T positions, H hidden size.
"""

from collections.abc import Iterable, Sequence

import torch

from bebop.engines.base import Request
from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.contexts import Contexts, KeptContext
from bebop.engines.embedded.drafting import Drafter
from bebop.engines.embedded.extension import extend, num_new_tokens
from bebop.engines.embedded.prefilled import NOTHING, Prefilled, PrefilledBatch, fill

MAX_EXTENSION = 512
"""New tokens that are run over a kept context in one window; beyond it, the whole prompt is prefilled."""


class Prefiller:
    """Prefill of the backbone and, where there is one, of the head."""

    def __init__(
        self, backbone: Backbone, drafter: Drafter | None, max_tokens: int, contexts: Contexts | None = None
    ) -> None:
        self._backbone = backbone
        self._drafter = drafter
        self._max_tokens = max_tokens
        self.contexts = contexts or Contexts(max_bytes=0)
        self.num_reused = 0
        """Prompt tokens so far that were in a kept context."""

    @property
    def cache_bytes(self) -> int:
        """Memory of the slots."""
        return self._backbone.num_bytes + (self._drafter.num_bytes if self._drafter else 0)

    def prepare(self, requests: Sequence[Request]) -> list[Prefilled]:
        """The prompts of requests: continued, remembered, or run."""
        kept = [self._kept(request) for request in requests]
        fresh = [request.prompt_tokens for request, context in zip(requests, kept, strict=True) if context is None]
        prefilled = iter(self._prefill_prompts(fresh))
        going_on = [
            (context, r.prompt_tokens) for r, context in zip(requests, kept, strict=True) if context is not None
        ]
        extended = iter(self._extend_all(going_on))
        return [next(prefilled if context is None else extended) for context in kept]

    def prefill(self, sequences: list[list[int]]) -> list[Prefilled]:
        """Run every sequence but for its last token, which the first round takes; like lengths go together."""
        done = [NOTHING] * len(sequences)
        lengths = {place: len(sequence) - 1 for place, sequence in enumerate(sequences) if len(sequence) > 1}
        for members in self._grouped(lengths):
            batch = self._run([sequences[place] for place in members])
            for row, place in enumerate(members):
                done[place] = Prefilled(batch=batch, row=row)
        return done

    def fill(self, slots: list[int], prefilled: list[Prefilled]) -> None:
        """Put ``prefilled[i]`` into ``slots[i]``."""
        fill(self._backbone, self._drafter, slots, prefilled)

    def keep(self, request_id: str, slot: int, tokens: Sequence[int], num_waiting: int) -> None:
        """Keep a slot's context, all but its last token, for a request that continues it."""
        num_cached = len(tokens) - 1
        backbone = self._backbone.copy_of(slot, num_cached)
        if self._drafter is None:
            waiting_1WH = torch.empty(1, 0, 0)
            batch = PrefilledBatch(backbone=backbone, head=None, waiting_RWH=waiting_1WH)
        else:
            head = self._drafter.cache.copy_of(slot, num_cached - num_waiting)
            waiting_1WH = self._drafter.waiting_of(slot, num_waiting)
            batch = PrefilledBatch(backbone=backbone, head=head, waiting_RWH=waiting_1WH)
        self.contexts.keep_conversation(request_id, tokens, Prefilled(batch=batch))

    def _kept(self, request: Request) -> KeptContext | None:
        """The context that the request continues, if it is still there and worth it."""
        if request.continues is None:
            return None
        context = self.contexts.take_conversation(request.continues, request.prompt_tokens)
        if context is None or num_new_tokens(context, request.prompt_tokens) > MAX_EXTENSION:
            return None
        self.num_reused += len(context.tokens) - 1
        return context

    def _prefill_prompts(self, prompts: Sequence[tuple[int, ...]]) -> list[Prefilled]:
        """Prompts that are equal, to one another or to recent ones, are run once."""
        known = {prompt: self.contexts.prompt(prompt) for prompt in prompts}
        new = [prompt for prompt, prefilled in known.items() if prefilled is None]
        found = dict(zip(new, self.prefill([list(prompt) for prompt in new]), strict=True))
        for prompt, prefilled in found.items():
            self.contexts.keep_prompt(prompt, prefilled)
        return [known[prompt] or found[prompt] for prompt in prompts]

    def _extend_all(self, going_on: Sequence[tuple[KeptContext, tuple[int, ...]]]) -> list[Prefilled]:
        """Run what prompts add to the contexts that they continue; like numbers of new tokens go together."""
        lengths = {place: num_new_tokens(*pair) for place, pair in enumerate(going_on)}
        done = [context.prefilled for context, _ in going_on]
        for members in self._grouped({place: length for place, length in lengths.items() if length > 0}):
            batch = extend(self._backbone, self._drafter, [going_on[place] for place in members])
            for row, place in enumerate(members):
                done[place] = Prefilled(batch=batch, row=row)
        return done

    def _grouped(self, lengths: dict[int, int]) -> Iterable[list[int]]:
        """Places by length, longest first, as many at a time as fit into ``max_tokens`` with padding."""
        order = sorted(lengths, key=lengths.__getitem__)
        while order:
            members = order[-max(1, self._max_tokens // lengths[order[-1]]) :]
            del order[-len(members) :]
            yield members

    def _run(self, sequences: list[list[int]]) -> PrefilledBatch:
        device = self._backbone.policy.device
        longest = max(map(len, sequences)) - 1
        # Padding repeats a real token: any id is masked or overwritten, but it must be in the vocabulary.
        padded = torch.tensor([seq + seq[-1:] * (longest + 1 - len(seq)) for seq in sequences], device=device)
        lengths_R = torch.tensor([len(seq) - 1 for seq in sequences], device=device)
        hidden, cache = self._backbone.prefill(padded[:, :-1], lengths_R)
        head = None if self._drafter is None else self._drafter.prefill(hidden.draft_BTH, padded[:, 1:])
        last_RH = hidden.draft_BTH[torch.arange(len(sequences), device=device), lengths_R - 1].clone()
        return PrefilledBatch(backbone=cache, head=head, waiting_RWH=last_RH[:, None])
