"""Which completions run: requests wait, take a slot, and leave it; slots in use stay the first ones.

Admission holds up every row that runs: a prefill of one short prompt, or of what a conversation's next turn adds, takes
about half a round. Free slots therefore wait for others to be filled with, until they have stood idle for as long.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bebop.engines.base import Request
from bebop.engines.embedded.prefilled import Prefilled
from bebop.engines.embedded.prompts import Prefiller
from bebop.engines.embedded.rows import Row

MakeRow = Callable[[Request, int], Row]
MoveSlot = Callable[[int, int], None]

_ADMISSIONS_PER_ROUND = 2
"""How many admissions take as long as a round."""


@dataclass(slots=True)
class _Group:
    """A request of which some completions wait; its prefill is kept until the last one has a slot."""

    request: Request
    num_started: int = 0
    prefilled: Prefilled | None = None


_Start = tuple[_Group, int]
"""A completion that is to start: its request and its place among the request's completions."""


class Scheduler:
    """Continuous batching over a fixed number of slots."""

    def __init__(self, source: Iterable[Request | None], num_slots: int, make_row: MakeRow) -> None:
        self.rows: list[Row] = []
        self._free: list[int] = []
        """Slots below ``len(rows)`` whose row has ended."""
        self._source: Iterator[Request | None] | None = iter(source)
        self._group: _Group | None = None
        self._starts: list[_Start] = []
        """What waits for admission."""
        self._idle_rounds = 0
        """Rounds that those have waited, all together."""
        self._num_slots = num_slots
        self._make_row = make_row

    @property
    def is_done(self) -> bool:
        """Nothing runs and nothing will."""
        return self._source is None and self._group is None and not self._starts and not self.rows

    def forget_prefills(self) -> None:
        """The weights changed: prompts that wait are prefilled again."""
        for group in (self._group, *(group for group, _ in self._starts)):
            if group is not None:
                group.prefilled = None

    def retire(self) -> list[Row]:
        """Take out the rows that have stopped; their slots are free."""
        ended = [slot for slot, row in enumerate(self.rows) if row.stop_reason is not None and slot not in self._free]
        self._free.extend(ended)
        return [self.rows[slot] for slot in ended]

    def admit(self, prefiller: Prefiller, move: MoveSlot, reserve: Callable[[int], None]) -> bool:
        """Fill free slots with waiting completions when it is time, close the gaps that remain; True when the batch
        changed.
        """
        starts = self._due()
        # Making a row checks its request, which must be sound before the prompt is run.
        new = [self._make_row(group.request, index) for group, index in starts]
        self._prefill([group for group, _ in starts], prefiller)
        changed = bool(starts or self._free)
        slots: list[int] = []
        for row, (group, _) in zip(new, starts, strict=True):
            assert group.prefilled is not None
            row.num_waiting = group.prefilled.num_waiting
            slots.append(self._place(row))
        if starts:
            reserve(max(len(group.request.prompt_tokens) for group, _ in starts))
            prefiller.fill(slots, [group.prefilled for group, _ in starts if group.prefilled is not None])
        self._compact(move)
        return changed

    def _due(self) -> list[_Start]:
        """What is to be admitted now: nothing, or all that waits."""
        self._starts.extend(self._take())
        self._idle_rounds += len(self._starts)
        if self._idle_rounds * _ADMISSIONS_PER_ROUND < self._num_running:
            return []
        starts, self._starts, self._idle_rounds = self._starts, [], 0
        return starts

    def _place(self, row: Row) -> int:
        if self._free:
            slot = self._free.pop()
            self.rows[slot] = row
            return slot
        self.rows.append(row)
        return len(self.rows) - 1

    def _compact(self, move: MoveSlot) -> None:
        """Move the last rows into the gaps, so that a batch is the first slots."""
        for slot in sorted(self._free, reverse=True):
            last = len(self.rows) - 1
            if slot != last:
                move(last, slot)
                self.rows[slot] = self.rows[last]
            self.rows.pop()
        self._free.clear()

    def _prefill(self, groups: list[_Group], prefiller: Prefiller) -> None:
        new = list({id(group): group for group in groups if group.prefilled is None}.values())
        prefilled = prefiller.prepare([group.request for group in new])
        for group, result in zip(new, prefilled, strict=True):
            group.prefilled = result

    @property
    def _num_running(self) -> int:
        return len(self.rows) - len(self._free)

    def _take(self) -> list[_Start]:
        """As many completions as slots are free and not spoken for, in the order of their requests."""
        starts: list[_Start] = []
        num_taken = self._num_running + len(self._starts)
        while num_taken + len(starts) < self._num_slots:
            if self._group is None and not self._pull():
                break
            group = self._group
            assert group is not None
            starts.append((group, group.num_started))
            group.num_started += 1
            if group.num_started == group.request.num_completions:
                self._group = None
        return starts

    def _pull(self) -> bool:
        """Get the next request, if there is one ready."""
        if self._source is None:
            return False
        request = next(self._source, _END)
        if request is _END:
            self._source = None
            return False
        if request is None:
            return False
        assert isinstance(request, Request)
        self._group = _Group(request)
        return True


_END = object()
