"""The audit: open the engine on policies with known heads, look at it from all sides, judge."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from bebop.audit.checks.controls import check_biased_arm, check_exact_arm
from bebop.audit.checks.law import check_alive, check_laws, check_rows, check_undrafted
from bebop.audit.checks.logprobs import check_logprobs
from bebop.audit.checks.replay import check_replay
from bebop.audit.checks.sleep import check_sleep
from bebop.audit.checks.speculation import check_speculation
from bebop.audit.checks.stops import check_stops
from bebop.audit.checks.weights import check_weights
from bebop.audit.exact import ExactPolicy
from bebop.audit.host import EngineDied, Host
from bebop.audit.judge import judge
from bebop.audit.plan import AuditPlan
from bebop.audit.policies import DraftKind, PolicyRecipe, build_policy, write_policy
from bebop.audit.records import AuditReport, Evidence
from bebop.audit.subjects import Subject
from bebop.audit.survey import Session, WrittenPolicy, take_survey
from bebop.models.quiet import quiet_transformers

Told = Callable[[str], None]
"""Called with what is looked at next."""


def audit(subject: Subject, plan: AuditPlan, told: Told = lambda _: None) -> AuditReport:
    """Every check that the plan wants, on every format and head; an error of the engine's ends it."""
    started = time.monotonic()
    evidence = [
        item
        for format in plan.formats
        for item in _one_format(subject, PolicyRecipe(format=format, vocabulary=plan.vocabulary), plan, told)
        if plan.wants(item.check)
    ]
    return AuditReport(engine=subject.name, results=judge(evidence, plan), seconds=time.monotonic() - started)


def _one_format(subject: Subject, recipe: PolicyRecipe, plan: AuditPlan, told: Told) -> Iterator[Evidence]:
    base = ExactPolicy(build_policy(recipe), plan.max_tokens)
    if plan.wants("control"):
        told(f"{recipe.format.value}: the audit's own arms")
        yield check_exact_arm(base, plan)
        yield check_biased_arm(base, plan)
    if plan.wants("law/undrafted"):
        told(f"{recipe.format.value}: without speculation")
        with opened(subject, recipe, plan, base, num_draft_tokens=0) as session:
            yield from outlived(check_undrafted(session))
    for draft in plan.drafts:
        told(f"{recipe.format.value}: {draft.value} head")
        with opened(subject, replace(recipe, draft=draft), plan, base) as session:
            yield from outlived(_look(session))
            if draft is DraftKind.ECHO:
                yield from outlived(_change(session))


def _look(session: Session) -> Iterator[Evidence]:
    """The checks that leave the engine as it is."""
    plan = session.plan
    if any(map(plan.wants, ("engine", "law", "log-probs", "speculation", "seeds", "batch"))):
        survey = take_survey(session)
        yield from check_alive(session, survey)
        yield from check_speculation(session, survey)
        yield from check_laws(session, survey)
        yield from check_rows(session, survey)
        yield from check_logprobs(session, survey)
        if plan.wants("seeds") or plan.wants("batch"):
            yield from outlived(check_replay(session, survey))
    if plan.wants("stops"):
        yield from outlived(check_stops(session))


def _change(session: Session) -> Iterator[Evidence]:
    """The checks that change the engine's state; for a head that drafts well."""
    if session.plan.wants("sleep"):
        yield from outlived(check_sleep(session))
    if session.plan.wants("weights"):
        yield from outlived(check_weights(session))


def outlived(evidence: Iterator[Evidence]) -> Iterator[Evidence]:
    """The evidence of a check, or of the engine's death in it."""
    try:
        yield from evidence
    except EngineDied as death:
        yield Evidence(check="engine/alive", faults=(str(death),))


@contextmanager
def opened(
    subject: Subject,
    recipe: PolicyRecipe,
    plan: AuditPlan,
    base: ExactPolicy,
    *,
    num_draft_tokens: int | None = None,
) -> Iterator[Session]:
    """The engine on a policy written to a directory that lives as long; ``base`` has the same backbone."""
    num_draft_tokens = plan.num_draft_tokens if num_draft_tokens is None else num_draft_tokens
    with tempfile.TemporaryDirectory(prefix="bebop-audit-") as scratch:
        directory = Path(scratch) / "policy"
        with quiet_transformers():
            policy = write_policy(recipe, directory)
        assert policy.head is not None
        with closing(Host(lambda: subject.open(directory, num_draft_tokens))) as engine:
            yield Session(
                label=f"{recipe.format.value} {recipe.draft.value}",
                engine=engine,
                exact=ExactPolicy(policy, plan.max_tokens, backbone_of=base),
                plan=plan,
                draft_lengths=subject.draft_lengths if num_draft_tokens > 0 else (None,),
                written=WrittenPolicy(recipe=recipe, head=policy.head),
            )
