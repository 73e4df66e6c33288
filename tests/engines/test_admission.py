"""Free slots wait for company before a prefill holds up the rows that run, and never for long."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bebop.engines.base import Request, StopReason
from bebop.engines.embedded.prefilled import NOTHING, Prefilled
from bebop.engines.embedded.rows import Row
from bebop.engines.embedded.scheduler import Scheduler


@dataclass(slots=True)
class Prefills:
    """Stands in for the prefiller; remembers which requests it was asked for together."""

    asked: list[list[str]] = field(default_factory=list)

    def prepare(self, requests: Sequence[Request]) -> list[Prefilled]:
        if requests:
            self.asked.append([one.id for one in requests])
        return [NOTHING] * len(requests)

    def fill(self, slots: list[int], prefilled: list[Prefilled]) -> None:
        assert len(slots) == len(prefilled)


def make_row(request: Request, index: int) -> Row:
    return Row(request=request, index=index, num_draft_tokens=None, max_context=9, decode=str, tokens=[1, 2])


def request(name: str, *, completions: int = 1) -> Request:
    return Request(id=name, prompt_tokens=(1, 2), max_tokens=4, num_completions=completions)


def scheduler(requests: Iterable[Request | None], *, slots: int) -> tuple[Scheduler, Any]:
    return Scheduler(requests, slots, make_row), Prefills()


def admit(one: Scheduler, prefills: Any) -> bool:
    return one.admit(prefills, lambda *_: None, lambda _: None)


def end(one: Scheduler, *slots: int) -> None:
    for slot in slots:
        one.rows[slot].stop_reason = StopReason.STOP_TOKEN
    one.retire()


def test_an_empty_batch_is_filled_at_once() -> None:
    one, prefills = scheduler([request(str(i)) for i in range(3)], slots=4)
    assert admit(one, prefills)
    assert prefills.asked == [["0", "1", "2"]] and len(one.rows) == 3


def test_a_free_slot_waits_until_it_has_stood_idle_for_half_a_round_of_the_others() -> None:
    one, prefills = scheduler([request(str(i)) for i in range(9)], slots=8)
    admit(one, prefills)
    end(one, 2)
    # Seven run: the eighth slot may stand idle for 3.5 rounds of one row.
    waited = 0
    while len(prefills.asked) == 1:
        assert (len(one.rows), one.is_done) in ((8, False), (7, False))
        admit(one, prefills)
        waited += 1
    assert waited == 4 and prefills.asked[1] == ["8"] and len(one.rows) == 8


def test_many_free_slots_are_filled_at_once_and_together() -> None:
    one, prefills = scheduler([request(str(i)) for i in range(12)], slots=8)
    admit(one, prefills)
    end(one, 0, 3, 5)
    admit(one, prefills)
    assert prefills.asked[1:] == [["8", "9", "10"]]


def test_what_waits_when_the_source_ends_still_runs() -> None:
    def source() -> Iterator[Request | None]:
        yield from (request(str(i)) for i in range(8))
        yield None
        yield request("late")

    one, prefills = scheduler(source(), slots=9)
    admit(one, prefills)
    admit(one, prefills)
    assert len(one.rows) == 8 and not one.is_done
    end(one, *range(8))
    admit(one, prefills)
    assert [row.request.id for row in one.rows] == ["late"]


def test_new_weights_make_prompts_that_wait_stale() -> None:
    one, prefills = scheduler([request("a", completions=10)], slots=9)
    admit(one, prefills)
    end(one, 0)
    admit(one, prefills)
    assert len(one.rows) == 8, "the tenth completion waits for company"
    one.forget_prefills()
    end(one, *range(8))
    admit(one, prefills)
    assert prefills.asked == [["a"], ["a"]]
