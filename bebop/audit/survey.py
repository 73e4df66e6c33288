"""One large sample of an engine: every setting, mixed within batches, several draft lengths, many seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from bebop.audit.exact import ExactPolicy
from bebop.audit.laws import Tokens
from bebop.audit.plan import AuditPlan, Case
from bebop.audit.policies import PolicyRecipe
from bebop.audit.subjects import Subject
from bebop.engines.base import Completion, DraftStats, Engine, Request
from bebop.errors import UserError
from bebop.models.policy import MTPHead

_GROUP = 50
"""Completions of a request: small, so that settings mix within a batch; more than one, so that prompts are shared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """An engine opened on one policy, and what is exact about it."""

    subject: Subject
    engine: Engine
    exact: ExactPolicy
    head: MTPHead
    recipe: PolicyRecipe
    plan: AuditPlan
    drafts: bool = True
    """Whether the engine was opened with speculation."""

    @property
    def label(self) -> str:
        """Names the policy in fits."""
        return f"{self.recipe.format.value} {self.recipe.draft.value}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Completions by the name of their case, in the order of seeds; refused cases with the engine's words."""

    completions: Mapping[str, Sequence[Completion]]
    refusals: Mapping[str, str]

    def tokens(self, case: Case) -> list[Tokens]:
        return [done.tokens for done in self.completions[case.name]]

    def drafts(self, case: Case) -> DraftStats:
        """Counts over a case."""
        return sum((done.drafts for done in self.completions[case.name]), DraftStats())


def take_survey(session: Session, cases: Sequence[Case] | None = None, *, num_samples: int | None = None) -> Survey:
    """Sample every case (default: the plan's) that the engine takes."""
    cases = session.plan.cases if cases is None else cases
    refusals = {case.name: words for case in cases if (words := refusal(session, case)) is not None}
    taken = [case for case in cases if case.name not in refusals]
    requests = list(_requests(session, taken, num_samples or session.plan.num_samples))
    completions: dict[str, list[Completion]] = {case.name: [] for case in taken}
    for done in session.engine.generate(requests):
        completions[done.request_id.rpartition("/")[0]].append(done)
    return Survey(completions=completions, refusals=refusals)


def refusal(session: Session, case: Case) -> str | None:
    """The engine's words where it does not take a setting; None where it does."""
    request = Request(id="probe", prompt_tokens=case.prompt, max_tokens=1, sampling=case.sampling)
    try:
        session.engine.generate([request])
    except UserError as error:
        return str(error)
    return None


def _requests(session: Session, cases: Sequence[Case], num_samples: int) -> Iterator[Request]:
    lengths = session.subject.draft_lengths
    seeds = count(session.plan.seed)
    for group, start in enumerate(range(0, num_samples, _GROUP)):
        for case in cases:
            yield Request(
                id=f"{case.name}/{group}",
                prompt_tokens=case.prompt,
                max_tokens=session.plan.max_tokens,
                sampling=case.sampling,
                seed=next(seeds),
                num_draft_tokens=lengths[group % len(lengths)] if session.drafts else None,
                num_completions=min(_GROUP, num_samples - start),
            )
