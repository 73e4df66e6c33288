"""Do target and head survive sleep?"""

from __future__ import annotations

from collections.abc import Iterator

from bebop.audit.checks.law import fits_of
from bebop.audit.checks.weights import check_alive
from bebop.audit.plan import PLAIN
from bebop.audit.records import Evidence
from bebop.audit.subjects import CanSleep
from bebop.audit.survey import Session, take_survey

_DEAD_SHARE = 0.5
"""A head whose acceptance is halved by sleep, with the same weights, is broken."""


def check_sleep(session: Session) -> Iterator[Evidence]:
    """Sample, sleep, wake, sample again."""
    engine = session.engine
    if not isinstance(engine, CanSleep):
        yield from (Evidence(check=f"sleep/{name}", refusal="the engine has no sleep") for name in ("law", "head"))
        return
    before = take_survey(session, (PLAIN,))
    engine.sleep()
    engine.wake()
    after = take_survey(session, (PLAIN,))
    yield Evidence(check="sleep/law", fits=tuple(fits_of(session, after, PLAIN)))
    yield check_alive("sleep/head", before, after, _DEAD_SHARE)
