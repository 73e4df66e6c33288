"""Which known defect a failure looks like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bebop.audit.fit import Fit, fit
from bebop.audit.laws import Tokens
from bebop.audit.plan import FIRST, LATER, Case
from bebop.audit.policies import DraftKind
from bebop.audit.survey import Session, Survey
from bebop.core.sampling import GREEDY, Sampling

_AGREES = 1e-3
"""A p-value above which samples are taken to follow another law."""
_LARGE = 0.1
"""A total variation far beyond what the biases of wrong random streams or residuals come to."""

ARGMAX = (
    "Every completion is the greedy one: verification takes the argmax and ignores sampling settings, as SGLang does "
    "on CPU and XPU."
)
IGNORED = "Samples follow temperature 1 without truncation: the setting does not reach requests with drafts."
UNINITIALISED = (
    "The first token is right and later ones are far off at temperature 1 too: verification reads other sampling "
    "settings than the request's, as with vllm#55005 (temperature, top-k and top-p of speculative requests are "
    "uninitialised memory in vLLM's CPU build)."
)
TOWARDS_DRAFT = (
    "What is emitted leans towards what the head drafts: draft, acceptance and residual share random numbers "
    "(vllm#47386, vllm#54282), the residual is not (p - q)+, or q is not the distribution that drafts are sampled from "
    "(transformers#47932)."
)


def law_pattern(session: Session, survey: Survey, case: Case, fits: Mapping[str, Sequence[Fit]]) -> str | None:
    """A sentence on the likeliest cause of a failed case, or None."""
    if case.is_sampled and _follows(session, survey, case, GREEDY):
        return ARGMAX
    if case.is_sampled and case.sampling != Sampling() and _follows(session, survey, case, Sampling()):
        return IGNORED
    if _later_tokens_are_far_off(fits.get(session.plan.plain.name, ()), session):
        return UNINITIALISED
    if case.is_sampled and session.written and _tilt(session, survey, case) > 0:
        return TOWARDS_DRAFT
    return None


def _follows(session: Session, survey: Survey, case: Case, sampling: Sampling) -> bool:
    law = session.exact.law(case.prompt, sampling)
    view = session.plan.views[LATER]
    return fit("", [view(tokens) for tokens in survey.tokens(case)], law.project(view)).p_value > _AGREES


def _later_tokens_are_far_off(fits: Sequence[Fit], session: Session) -> bool:
    """With a head whose drafts are nearly all refused, so that no bonus token is to blame."""
    if not fits or not _refuses_most(session):
        return False
    by_view = dict(zip(session.plan.views, fits, strict=True))
    return by_view[FIRST].p_value > _AGREES and by_view[LATER].excess > _LARGE


def _refuses_most(session: Session) -> bool:
    return session.written is not None and session.written.recipe.draft is DraftKind.OPPOSITE


def _tilt(session: Session, survey: Survey, case: Case) -> float:
    """How far samples lean from target to draft, in standard deviations; 0 unless that is many.

    For frequencies f the estimate sum (f - p) (q - p) / sum (q - p)^2 is 0 on average for an exact engine.
    """
    prompt = case.prompt
    counts: dict[Tokens, dict[int, int]] = {}
    for prefix, token in _places(survey.tokens(case)):
        after = counts.setdefault(prefix, {})
        after[token] = after.get(token, 0) + 1
    prefixes = list(counts)
    target_NV = session.exact.target(prompt).law(case.sampling)(prefixes)
    gap_NV = session.exact.draft(prompt).law(case.sampling)(prefixes) - target_NV
    lean, variance = 0.0, 0.0
    for prefix, target_V, gap_V in zip(prefixes, target_NV, gap_NV, strict=True):
        total = sum(counts[prefix].values())
        mean = float((target_V * gap_V).sum())
        lean += sum(n * float(gap_V[token]) for token, n in counts[prefix].items()) - total * mean
        variance += total * (float((target_V * gap_V**2).sum()) - mean**2)
    deviations = lean / variance**0.5 if variance > 0 else 0.0
    return deviations if deviations > 5 else 0.0


def _places(completions: Sequence[Tokens]) -> Iterator[tuple[Tokens, int]]:
    for tokens in completions:
        for place, token in enumerate(tokens):
            yield tokens[:place], token
