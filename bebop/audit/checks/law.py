"""Do completions follow the exact law, setting by setting, and independently of one another?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from bebop.audit.fit import Fit, fit, pooled
from bebop.audit.laws import Law, Tokens
from bebop.audit.patterns import law_pattern
from bebop.audit.plan import CASES, PLAIN, VIEWS, Case
from bebop.audit.records import Evidence
from bebop.audit.survey import Session, Survey, take_survey

_SURELY = 1e-9
"""A p-value at which a reason is looked for."""


def check_laws(session: Session, survey: Survey) -> Iterator[Evidence]:
    """A row per kind of setting, and one over all of them."""
    fits = {case.name: fits_of(session, survey, case) for case in CASES if case.name in survey.completions}
    for case in CASES:
        if case.name in survey.refusals:
            yield Evidence(check=case.check, refusal=survey.refusals[case.name])
            continue
        failed = any(one.p_value < _SURELY for one in fits[case.name])
        pattern = law_pattern(session, survey, case, fits) if failed else None
        yield Evidence(check=case.check, fits=tuple(fits[case.name]), pattern=pattern)
    sampled = [fits[case.name] for case in CASES if case.is_sampled and case.name in fits]
    together = tuple(pooled(f"{session.label}, {view}", views) for view, views in _by_view(sampled))
    yield Evidence(check="law/pooled", fits=together)


def fits_of(session: Session, survey: Survey, case: Case) -> list[Fit]:
    """A case's completions against its law, view by view."""
    law = session.exact.law(case.prompt, case.sampling)
    return view_fits(f"{session.label}, {case.name}", survey.tokens(case), law)


def view_fits(name: str, completions: list[Tokens], law: Law) -> list[Fit]:
    """One fit for each view of the completions."""
    return [
        fit(f"{name}, {view}", [look(tokens) for tokens in completions], law.project(look))
        for view, look in VIEWS.items()
    ]


def _by_view(cases: list[list[Fit]]) -> Iterator[tuple[str, list[Fit]]]:
    yield from zip(VIEWS, (list(fits) for fits in zip(*cases, strict=True)), strict=True)


def check_rows(session: Session, survey: Survey) -> Iterator[Evidence]:
    """Neighbours in a group, and the first of neighbouring seeds, are independent: pairs follow the product law."""
    if PLAIN.name not in survey.completions:
        return
    first = session.exact.law(PLAIN.prompt, PLAIN.sampling).project(VIEWS["tokens 1-2"])
    first = first.project(lambda tokens: tokens[-1:])
    product = Law(masses={(*a, *b): p * q for a, p in first.masses.items() for b, q in first.masses.items()})
    seconds = [tokens[1] for tokens in survey.tokens(PLAIN)]
    groups: dict[str, list[int]] = {}
    for done, token in zip(survey.completions[PLAIN.name], seconds, strict=True):
        groups.setdefault(done.request_id, []).append(token)
    neighbours = [(a, b) for tokens in groups.values() for a, b in zip(tokens[::2], tokens[1::2], strict=False)]
    seeds = [pair for one, other in list(pairwise(groups.values()))[::2] for pair in zip(one, other, strict=False)]
    fits = [fit(f"{session.label}, rows of a request", neighbours, product)]
    if seeds:
        fits.append(fit(f"{session.label}, neighbouring seeds", seeds, product))
    yield Evidence(check="law/rows", fits=tuple(fits))


def check_undrafted(session: Session) -> Iterator[Evidence]:
    """The engine opened without speculation."""
    cases = [case for case in CASES if case.is_sampled]
    survey = take_survey(session, cases, num_samples=session.plan.num_samples // 2)
    fits = [one for case in cases if case.name in survey.completions for one in fits_of(session, survey, case)]
    yield Evidence(check="law/undrafted", fits=tuple(fits))
