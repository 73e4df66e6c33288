"""Prefilling token sequences once, and copying the result into as many slots as share them.

Legend: R rows of a prefill, T positions, H hidden size.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.cache import PrefillCache
from bebop.engines.embedded.drafting import Drafter

NUM_REMEMBERED = 16
"""Prompts whose prefill is kept for the next request that has the same: the attempts of a group follow one another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """What one prefill forward left behind."""

    backbone: PrefillCache
    head: PrefillCache | None
    last_RH: Tensor
    """The head's input at each row's last prefilled position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilled:
    """One sequence without its last token, ready to be copied; ``batch`` is None where that leaves nothing."""

    batch: _Batch | None
    row: int

    @property
    def num_waiting(self) -> int:
        """Hidden states that wait for the head once this is in a slot."""
        return 0 if self.batch is None else 1


class Prefiller:
    """Prefill of the backbone and, where there is one, of the head."""

    def __init__(self, backbone: Backbone, drafter: Drafter | None, max_tokens: int) -> None:
        self._backbone = backbone
        self._drafter = drafter
        self._max_tokens = max_tokens
        self._remembered: OrderedDict[tuple[int, ...], Prefilled] = OrderedDict()

    def prefill_prompts(self, prompts: Sequence[tuple[int, ...]]) -> list[Prefilled]:
        """Like ``prefill``, but prompts that are equal, to one another or to recent ones, are run once."""
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._remembered))
        found = dict(zip(new, self.prefill([list(prompt) for prompt in new]), strict=True))
        found |= {prompt: self._remembered[prompt] for prompt in prompts if prompt in self._remembered}
        for prompt in found:
            self._remembered[prompt] = found[prompt]
            self._remembered.move_to_end(prompt)
        while len(self._remembered) > NUM_REMEMBERED:
            self._remembered.popitem(last=False)
        return [found[prompt] for prompt in prompts]

    def forget(self) -> None:
        """The weights may have changed: remembered prefills are void."""
        self._remembered.clear()

    def prefill(self, sequences: list[list[int]]) -> list[Prefilled]:
        """Run every sequence but for its last token, which the first round takes; like lengths go together."""
        done: list[Prefilled] = [Prefilled(batch=None, row=0)] * len(sequences)
        order = sorted((i for i in range(len(sequences)) if len(sequences[i]) > 1), key=lambda i: len(sequences[i]))
        while order:
            longest = len(sequences[order[-1]]) - 1
            members = order[-max(1, self._max_tokens // longest) :]
            del order[-len(members) :]
            batch = self._run([sequences[i] for i in members])
            for row, i in enumerate(members):
                done[i] = Prefilled(batch=batch, row=row)
        return done

    def fill(self, slots: list[int], prefilled: list[Prefilled]) -> None:
        """Put ``prefilled[i]`` into ``slots[i]``."""
        by_batch: dict[int, list[int]] = {}
        for place, item in enumerate(prefilled):
            by_batch.setdefault(id(item.batch), []).append(place)
        for places in by_batch.values():
            batch = prefilled[places[0]].batch
            self._fill_from(batch, [slots[p] for p in places], [prefilled[p].row for p in places])

    def _fill_from(self, batch: _Batch | None, slots: list[int], rows: list[int]) -> None:
        if batch is None:
            for slot in slots:
                self._backbone.clear(slot)
                if self._drafter is not None:
                    self._drafter.clear(slot)
            return
        self._backbone.fill(slots, batch.backbone, rows)
        if self._drafter is not None and batch.head is not None:
            self._drafter.cache.fill(slots, batch.head, rows)
            self._drafter.keep_last(slots, batch.last_RH[rows])

    def _run(self, sequences: list[list[int]]) -> _Batch:
        device = self._backbone.policy.device
        longest = max(map(len, sequences)) - 1
        # Padding repeats a real token: any id is masked or overwritten, but it must be in the vocabulary.
        padded = torch.tensor([seq + seq[-1:] * (longest + 1 - len(seq)) for seq in sequences], device=device)
        lengths_R = torch.tensor([len(seq) - 1 for seq in sequences], device=device)
        hidden, cache = self._backbone.prefill(padded[:, :-1], lengths_R)
        head = None if self._drafter is None else self._drafter.prefill(hidden.draft_BTH, padded[:, 1:])
        last_RH = hidden.draft_BTH[torch.arange(len(sequences), device=device), lengths_R - 1].clone()
        return _Batch(backbone=cache, head=head, last_RH=last_RH)
