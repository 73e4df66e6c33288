"""Is the engine speculating at all?"""

from __future__ import annotations

from collections.abc import Iterator

from bebop.audit.policies import DraftKind
from bebop.audit.records import Effect, Evidence
from bebop.audit.survey import Session, Survey


def check_speculation(session: Session, survey: Survey) -> Iterator[Evidence]:
    """Drafts of a good head are accepted, those of an adversarial one refused."""
    if session.plan.plain.name not in survey.completions:
        return
    drafts = survey.drafts(session.plan.plain)
    if drafts.rounds == 0:
        yield Evidence(check="speculation/on", refusal="the engine does not report what it drafted")
        return
    head = session.written.recipe.draft if session.written else None
    faults = []
    if drafts.num_drafted == 0:
        faults.append(f"nothing was drafted in {drafts.rounds} rounds")
    elif head is DraftKind.ECHO and drafts.num_accepted == 0:
        faults.append(f"none of {drafts.num_drafted} drafts was accepted, though the head says what the target does")
    elif head is DraftKind.OPPOSITE and drafts.num_accepted == drafts.num_drafted:
        faults.append(f"all of {drafts.num_drafted} drafts were accepted, though the head says the opposite")
    effect = Effect(value=drafts.acceptance_rate, unit=f"accepted ({session.label})")
    yield Evidence(check="speculation/on", faults=tuple(faults), effect=effect)
