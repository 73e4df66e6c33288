"""Does an update of the weights reach target, head and version tags?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from bebop.audit.checks.law import fits_of
from bebop.audit.exact import ExactPolicy
from bebop.audit.plan import CASES, PLAIN, PROMPTS
from bebop.audit.policies import DraftKind, build_policy
from bebop.audit.records import Effect, Evidence
from bebop.audit.survey import Session, Survey, take_survey
from bebop.engines.embedded.weights import HEAD_PREFIX
from bebop.errors import UserError
from bebop.models.policy import Policy

_CASES = (PLAIN, next(case for case in CASES if case.check == "law/combined"))
_NEW_SEED = 1


def check_weights(session: Session) -> Iterator[Evidence]:
    """New backbone, then new backbone and head as one update. The session's head must be the echo."""
    assert session.recipe.draft is DraftKind.ECHO
    new = build_policy(replace(session.recipe, seed=session.recipe.seed + _NEW_SEED))
    updated = replace(session, exact=ExactPolicy(new))
    before = take_survey(session, _CASES)
    try:
        session.engine.load_weights(1, _backbone(new))
    except UserError as error:
        yield from (Evidence(check=f"weights/{name}", refusal=str(error)) for name in ("law", "version", "head"))
        return
    survey = take_survey(updated, _CASES)
    yield Evidence(check="weights/law", fits=tuple(_fits(updated, survey)))
    yield _check_versions(survey, 1)
    try:
        session.engine.load_weights(2, _backbone(new) | _head(new))
    except UserError as error:
        yield Evidence(check="weights/head", refusal=str(error))
        return
    survey = take_survey(updated, _CASES)
    yield Evidence(check="weights/law", fits=tuple(_fits(updated, survey)))
    yield _check_versions(survey, 2)
    yield check_alive("weights/head", before, survey, _dead_share(session.exact, updated.exact))


def check_alive(check: str, before: Survey, after: Survey, dead_share: float) -> Evidence:
    """Acceptance must be nearer to what it was than to ``dead_share`` of it."""
    old, new = _depth_1(before), _depth_1(after)
    if old is None or new is None:
        return Evidence(check=check, refusal="the engine does not report what it drafted")
    wanted = old * (1 + dead_share) / 2
    fault = (
        f"{new:.0%} of first drafts are accepted after {old:.0%} before; a stale head would have {old * dead_share:.0%}"
    )
    return Evidence(
        check=check,
        effect=Effect(value=new, unit="acceptance of first drafts"),
        faults=(fault,) if new < wanted else (),
    )


def _depth_1(survey: Survey) -> float | None:
    drafts = survey.drafts()
    return drafts.accepted[0] / drafts.reached[0] if drafts.reached and drafts.reached[0] else None


def _dead_share(old: ExactPolicy, new: ExactPolicy) -> float:
    """What of its acceptance the old head keeps on the new backbone, by enumeration."""
    prompt = PROMPTS[0]
    return new.overlap(prompt, old.draft(prompt)) / new.overlap(prompt, new.draft(prompt))


def _fits(session: Session, survey: Survey) -> Iterator:
    for case in _CASES:
        if case.name in survey.completions:
            yield from fits_of(session, survey, case)


def _check_versions(survey: Survey, version: int) -> Evidence:
    versions = [tag for completions in survey.completions.values() for done in completions for tag in done.versions]
    wrong = sum(tag != version for tag in versions)
    fault = f"{wrong} of {len(versions)} tokens do not carry version {version}"
    return Evidence(
        check="weights/version",
        effect=Effect(value=wrong / len(versions), unit="share with a wrong version"),
        faults=(fault,) if wrong else (),
    )


def _backbone(policy: Policy) -> dict[str, Tensor]:
    return dict(policy.backbone.state_dict())


def _head(policy: Policy) -> dict[str, Tensor]:
    assert policy.head is not None
    return {HEAD_PREFIX + name: tensor for name, tensor in policy.head.state_dict().items()}
