"""One large sample of an engine: every setting, mixed within batches, several draft lengths, many seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from bebop.audit.exact import ExactPolicy
from bebop.audit.host import EngineDied, Host
from bebop.audit.laws import Tokens
from bebop.audit.plan import AuditPlan, Case
from bebop.audit.policies import PolicyRecipe
from bebop.engines.base import Completion, DraftStats, Request
from bebop.errors import UserError
from bebop.models.policy import MTPHead

_GROUP = 50
"""Completions of a request: small, so that settings mix within a batch; more than one, so that prompts are shared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenPolicy:
    """A policy that the audit wrote: the recipe, and the head that came of it."""

    recipe: PolicyRecipe
    head: MTPHead


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """An engine opened on one policy, and what is exact about it."""

    label: str
    """Names the policy in the results."""
    engine: Host
    exact: ExactPolicy
    plan: AuditPlan
    draft_lengths: tuple[int | None, ...] = (None,)
    """Draft tokens that requests ask for, in turn; None takes the engine's."""
    written: WrittenPolicy | None = None
    """Where the audit wrote the policy: what it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Completions by the name of their case, in the order of seeds.

    ``refusals`` are the engine's words on settings that it does not take, ``deaths`` its last words on those that it
    died of, each asked for alone; ``died`` those on all of them together, where it died of that.
    """

    completions: Mapping[str, Sequence[Completion]]
    refusals: Mapping[str, str]
    deaths: Mapping[str, str]
    died: str | None = None

    def tokens(self, case: Case) -> list[Tokens]:
        return [done.tokens for done in self.completions[case.name]]

    def drafts(self, case: Case) -> DraftStats:
        """Counts over a case."""
        return sum((done.drafts for done in self.completions[case.name]), DraftStats())


def take_survey(session: Session, cases: Sequence[Case] | None = None, *, num_samples: int | None = None) -> Survey:
    """Sample every case (default: the plan's) that the engine takes."""
    cases = session.plan.cases if cases is None else cases
    size = num_samples or session.plan.num_samples
    refusals: dict[str, str] = {}
    deaths: dict[str, str] = {}
    for case in cases:
        try:
            session.engine.generate([_probe(case)])
        except UserError as error:
            refusals[case.name] = str(error)
        except EngineDied as death:
            deaths[case.name] = str(death)
    taken = [case for case in cases if case.name not in refusals and case.name not in deaths]
    try:
        return Survey(completions=_sample(session, taken, size), refusals=refusals, deaths=deaths)
    except EngineDied as death:
        died = str(death)
    completions: dict[str, Sequence[Completion]] = {}
    for case in taken:
        try:
            completions |= _sample(session, [case], size)
        except EngineDied as death:
            deaths[case.name] = str(death)
    return Survey(completions=completions, refusals=refusals, deaths=deaths, died=died)


def _probe(case: Case) -> Request:
    return Request(id="probe", prompt_tokens=case.prompt, max_tokens=1, sampling=case.sampling)


def _sample(session: Session, cases: Sequence[Case], num_samples: int) -> dict[str, list[Completion]]:
    completions: dict[str, list[Completion]] = {case.name: [] for case in cases}
    for done in session.engine.generate(list(_requests(session, cases, num_samples))):
        completions[done.request_id.rpartition("/")[0]].append(done)
    return completions


def _requests(session: Session, cases: Sequence[Case], num_samples: int) -> Iterator[Request]:
    lengths = session.draft_lengths
    seeds = count(session.plan.seed)
    for group, start in enumerate(range(0, num_samples, _GROUP)):
        for case in cases:
            yield Request(
                id=f"{case.name}/{group}",
                prompt_tokens=case.prompt,
                max_tokens=session.plan.max_tokens,
                sampling=case.sampling,
                seed=next(seeds),
                num_draft_tokens=lengths[group % len(lengths)],
                num_completions=min(_GROUP, num_samples - start),
            )
