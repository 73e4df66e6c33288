"""Are tokens a function of request and seed, whatever shares the batch?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bebop.audit.records import Effect, Evidence
from bebop.audit.survey import Session, Survey
from bebop.engines.base import Completion, Request

_NUM_REQUESTS = 16
_NUM_TOKENS = 10


def check_replay(session: Session, survey: Survey) -> Iterator[Evidence]:
    """The same requests twice; then each alone, and all of them in reverse order; with the survey's settings."""
    cases = [case for case in session.plan.cases if case.name in survey.completions]
    if not cases:
        return
    requests = [
        Request(
            id=str(number),
            prompt_tokens=cases[number % len(cases)].prompt,
            max_tokens=_NUM_TOKENS,
            sampling=cases[number % len(cases)].sampling,
            seed=session.plan.seed + 20_000_000 + number,
            num_completions=2,
        )
        for number in range(_NUM_REQUESTS)
    ]
    first = session.engine.generate(requests)
    again = session.engine.generate(requests)
    repeated = _differing(first, again)
    yield _evidence(session, "seeds/repeat", repeated, len(first), "another answer the second time")
    alone = [done for request in requests for done in session.engine.generate([request])]
    # Neighbours that come before change the slots and the order of calls.
    strangers = [replace(one, id=f"stranger {one.id}", seed=one.seed + 1) for one in requests]
    among = session.engine.generate([*strangers, *reversed(requests)])
    differing = _differing(first, alone) | _differing(first, among)
    if repeated:
        # Sampled answers change anyway; greedy ones must not.
        greedy = {request.id for request in requests if request.sampling.is_greedy}
        differing = {key for key in differing if key[0] in greedy}
    yield _evidence(session, "batch/composition", differing, len(first), "another answer in other company")


def _differing(one: Sequence[Completion], other: Sequence[Completion]) -> set[tuple[str, int]]:
    tokens = {(done.request_id, done.index): done.tokens for done in other}
    return {key for done in one if tokens.get(key := (done.request_id, done.index)) != done.tokens}


def _evidence(session: Session, check: str, differing: set[tuple[str, int]], total: int, what: str) -> Evidence:
    faults = (f"{len(differing)} of {total} completions have {what} ({session.label})",) if differing else ()
    return Evidence(check=check, faults=faults, effect=Effect(value=len(differing) / total, unit="share differing"))
