"""Do target and head survive sleep?"""

from __future__ import annotations

from collections.abc import Iterator

from bebop.audit.checks.law import fits_of
from bebop.audit.checks.weights import check_head
from bebop.audit.records import Evidence
from bebop.audit.survey import Session, take_survey
from bebop.errors import UserError

_DEAD_SHARE = 0.5
"""A head whose acceptance is halved by sleep, with the same weights, is broken."""


def check_sleep(session: Session) -> Iterator[Evidence]:
    """Sample, sleep, wake, sample again."""
    plain = session.plan.plain
    before = take_survey(session, (plain,))
    try:
        session.engine.nap()
    except UserError as error:
        yield from (Evidence(check=f"sleep/{name}", refusal=str(error)) for name in ("law", "head"))
        return
    after = take_survey(session, (plain,))
    yield Evidence(check="sleep/law", fits=tuple(fits_of(session, after, plain)))
    yield check_head("sleep/head", before.drafts(plain), after.drafts(plain), _DEAD_SHARE)
