"""Do completions follow the exact law, setting by setting, and independently of one another?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from bebop.audit.fit import Fit, fit, pooled
from bebop.audit.laws import Law, Tokens
from bebop.audit.patterns import law_pattern
from bebop.audit.plan import Case, View
from bebop.audit.records import Evidence
from bebop.audit.survey import Session, Survey, take_survey

_SURELY = 1e-9
"""A p-value at which a reason is looked for."""


def check_alive(session: Session, survey: Survey) -> Iterator[Evidence]:
    """The engine took all settings in one batch and outlived them."""
    faults = () if survey.died is None else (f"all settings in one batch ({session.label}): {survey.died}",)
    yield Evidence(check="engine/alive", faults=faults)


def check_laws(session: Session, survey: Survey) -> Iterator[Evidence]:
    """A row per kind of setting, and one over all of them."""
    fits = {case.name: fits_of(session, survey, case) for case in session.plan.cases if case.name in survey.completions}
    for case in session.plan.cases:
        if case.name in survey.refusals:
            yield Evidence(check=case.check, refusal=survey.refusals[case.name])
            continue
        if case.name in survey.deaths:
            yield Evidence(check=case.check, faults=(f"the engine died of {case.name}: {survey.deaths[case.name]}",))
            continue
        failed = any(one.p_value < _SURELY for one in fits[case.name])
        pattern = law_pattern(session, survey, case, fits) if failed else None
        yield Evidence(check=case.check, fits=tuple(fits[case.name]), pattern=pattern)
    sampled = [fits[case.name] for case in session.plan.cases if case.is_sampled and case.name in fits]
    together = tuple(
        pooled(f"{session.label}, {view}", [of_case[place] for of_case in sampled])
        for place, view in enumerate(session.plan.views)
        if sampled
    )
    yield Evidence(check="law/pooled", fits=together)


def fits_of(session: Session, survey: Survey, case: Case) -> list[Fit]:
    """A case's completions against its law, view by view."""
    law = session.exact.law(case.prompt, case.sampling)
    return view_fits(f"{session.label}, {case.name}", survey.tokens(case), law, session.plan.views)


def view_fits(name: str, completions: Sequence[Tokens], law: Law, views: dict[str, View]) -> list[Fit]:
    """One fit for each view of the completions. Those in the law's rest are in the rest of every view."""
    if law.rest > 0:
        known = [tokens for tokens in completions if tokens in law.masses]
        unknown: list[Tokens | None] = [None] * (len(completions) - len(known))
    else:
        known, unknown = list(completions), []
    return [fit(f"{name}, {view}", [*map(look, known), *unknown], law.project(look)) for view, look in views.items()]


def check_rows(session: Session, survey: Survey) -> Iterator[Evidence]:
    """Neighbours in a group, and the first of neighbouring seeds, are independent: pairs follow the product law."""
    plain = session.plan.plain
    if plain.name not in survey.completions or session.exact.law(plain.prompt, plain.sampling).rest > 0:
        return
    second = session.exact.law(plain.prompt, plain.sampling).project(lambda tokens: tokens[1:2])
    product = Law(masses={(*a, *b): p * q for a, p in second.masses.items() for b, q in second.masses.items()})
    groups: dict[str, list[int]] = {}
    for done in survey.completions[plain.name]:
        if len(done.tokens) > 1:
            groups.setdefault(done.request_id, []).append(done.tokens[1])
    neighbours = [pair for tokens in groups.values() for pair in zip(tokens[::2], tokens[1::2], strict=False)]
    seeds = [pair for one, other in list(pairwise(groups.values()))[::2] for pair in zip(one, other, strict=False)]
    fits = [fit(f"{session.label}, rows of a request", neighbours, product)]
    if seeds:
        fits.append(fit(f"{session.label}, neighbouring seeds", seeds, product))
    yield Evidence(check="law/rows", fits=tuple(fits))


def check_undrafted(session: Session) -> Iterator[Evidence]:
    """The engine opened without speculation."""
    cases = [case for case in session.plan.cases if case.is_sampled]
    survey = take_survey(session, cases, num_samples=session.plan.num_samples // 2)
    fits = [one for case in cases if case.name in survey.completions for one in fits_of(session, survey, case)]
    deaths = tuple(f"the engine died of {name}: {words}" for name, words in survey.deaths.items())
    yield Evidence(check="law/undrafted", fits=tuple(fits), faults=deaths)
