"""What a prefill leaves behind, in the form in which it is copied into slots.

Legend: R rows of a prefill, W hidden states that wait for the head, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.cache import PrefillCache
from bebop.engines.embedded.drafting import Drafter


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefilledBatch:
    """Rows that were computed together."""

    backbone: PrefillCache
    head: PrefillCache | None
    """None where the engine has no head."""
    waiting_RWH: Tensor
    """The head's inputs at the last W positions of each row."""
    num_bytes: int = field(init=False)
    """Memory of all rows."""

    def __post_init__(self) -> None:
        head = 0 if self.head is None else self.head.num_bytes
        waiting = self.waiting_RWH.numel() * self.waiting_RWH.element_size()
        object.__setattr__(self, "num_bytes", self.backbone.num_bytes + head + waiting)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilled:
    """One sequence without its last token, ready to be copied; ``batch`` is None where that leaves nothing."""

    batch: PrefilledBatch | None
    row: int = 0

    @property
    def num_waiting(self) -> int:
        """Hidden states that wait for the head once this is in a slot."""
        return 0 if self.batch is None else self.batch.waiting_RWH.shape[1]


NOTHING = Prefilled(batch=None)


def fill(backbone: Backbone, drafter: Drafter | None, slots: Sequence[int], prefilled: Sequence[Prefilled]) -> None:
    """Put ``prefilled[i]`` into ``slots[i]``."""
    by_batch: dict[int, list[int]] = {}
    for place, one in enumerate(prefilled):
        by_batch.setdefault(id(one.batch), []).append(place)
    for places in by_batch.values():
        batch, into = prefilled[places[0]].batch, [slots[place] for place in places]
        if batch is None:
            clear(backbone, drafter, into)
        else:
            _fill_from(backbone, drafter, batch, into, [prefilled[place].row for place in places])


def clear(backbone: Backbone, drafter: Drafter | None, slots: Sequence[int]) -> None:
    """Forget what slots hold."""
    for slot in slots:
        backbone.clear(slot)
        if drafter is not None:
            drafter.clear(slot)


def _fill_from(
    backbone: Backbone, drafter: Drafter | None, batch: PrefilledBatch, slots: list[int], rows: list[int]
) -> None:
    backbone.fill(slots, batch.backbone, rows)
    if drafter is not None and batch.head is not None:
        drafter.cache.fill(slots, batch.head, rows)
        drafter.keep_first(slots, batch.waiting_RWH[rows])
