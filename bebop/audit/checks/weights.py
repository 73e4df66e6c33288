"""Does an update of the weights reach target, head and version tags?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from bebop.audit.checks.law import fits_of
from bebop.audit.exact import ExactPolicy
from bebop.audit.fit import Fit
from bebop.audit.laws import Tokens
from bebop.audit.plan import Case
from bebop.audit.policies import DraftKind, build_policy
from bebop.audit.records import Effect, Evidence
from bebop.audit.survey import Session, Survey, take_survey
from bebop.engines.base import DraftStats
from bebop.engines.embedded.weights import HEAD_PREFIX
from bebop.errors import UserError
from bebop.models.policy import MTPHead, Policy

_NEW_SEED = 1


def check_weights(session: Session) -> Iterator[Evidence]:
    """New backbone, then new backbone and head as one update. The session's head must be the echo."""
    written = session.written
    assert written is not None and written.recipe.draft is DraftKind.ECHO
    new = build_policy(replace(written.recipe, seed=written.recipe.seed + _NEW_SEED, turned=True))
    updated = replace(session, exact=ExactPolicy(new, session.plan.max_tokens))
    plain = session.plan.plain
    dead = _dead_share(new, written.head, plain.prompt)
    before = take_survey(session, _cases(session))
    try:
        session.engine.load_weights(1, _backbone(new))
    except UserError as error:
        yield from (Evidence(check=f"weights/{name}", refusal=str(error)) for name in ("law", "version", "head"))
        return
    survey = take_survey(updated, _cases(session))
    yield Evidence(check="weights/law", fits=tuple(_fits(updated, survey)))
    yield _check_versions(survey, 1)
    try:
        session.engine.load_weights(2, _backbone(new) | _head(new))
    except UserError as error:
        yield Evidence(check="weights/head", refusal=str(error))
        return
    survey = take_survey(updated, _cases(session))
    yield Evidence(check="weights/law", fits=tuple(_fits(updated, survey)))
    yield _check_versions(survey, 2)
    yield check_head("weights/head", before.drafts(plain), survey.drafts(plain), dead)


def check_head(check: str, before: DraftStats, after: DraftStats, dead_share: float) -> Evidence:
    """The acceptance of first drafts must be nearer to what it was than to ``dead_share`` of it."""
    if not (before.reached and after.reached):
        return Evidence(check=check, refusal="the engine does not report what it drafted")
    old, new = before.accepted[0] / before.reached[0], after.accepted[0] / after.reached[0]
    fault = (
        f"{new:.0%} of first drafts are accepted after {old:.0%} before; a stale head would have {old * dead_share:.0%}"
    )
    return Evidence(
        check=check,
        effect=Effect(value=new, unit="first drafts accepted"),
        faults=(fault,) if new < old * (1 + dead_share) / 2 else (),
    )


def _cases(session: Session) -> list[Case]:
    """Plain, and one with everything set."""
    return [session.plan.plain, *(case for case in session.plan.cases if case.check == "law/combined")]


def _dead_share(new: Policy, old_head: MTPHead, prompt: Tokens) -> float:
    """Overlap of the new backbone with its old head, over that with its own, by enumeration."""
    stale, own = (ExactPolicy(policy, 1).overlap(prompt) for policy in (replace(new, head=old_head), new))
    return stale / own


def _fits(session: Session, survey: Survey) -> Iterator[Fit]:
    for case in _cases(session):
        if case.name in survey.completions:
            yield from fits_of(session, survey, case)


def _check_versions(survey: Survey, version: int) -> Evidence:
    versions = [tag for completions in survey.completions.values() for done in completions for tag in done.versions]
    wrong = sum(tag != version for tag in versions)
    fault = f"{wrong} of {len(versions)} tokens do not carry version {version}"
    return Evidence(
        check="weights/version",
        effect=Effect(value=wrong / len(versions), unit="wrong versions"),
        faults=(fault,) if wrong else (),
    )


def _backbone(policy: Policy) -> dict[str, Tensor]:
    return dict(policy.backbone.state_dict())


def _head(policy: Policy) -> dict[str, Tensor]:
    assert policy.head is not None
    return {HEAD_PREFIX + name: tensor for name, tensor in policy.head.state_dict().items()}
