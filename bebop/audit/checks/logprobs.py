"""Do returned log-probs belong to the distribution that was sampled from?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bebop.audit.exact import logprob_table
from bebop.audit.laws import Conditional, Tokens
from bebop.audit.plan import Case
from bebop.audit.records import Effect, Evidence
from bebop.audit.survey import Session, Survey
from bebop.core.sampling import Sampling
from bebop.engines.base import Completion

_MOST = 0.95
"""Share of tokens that must agree with another law for it to be named."""

_MANY = 0.2
"""Share of tokens that must be off for a reason to be looked for: fewer are no matter of another law."""

Values = Callable[[Completion], Sequence[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Error:
    """Deviation over the tokens of one case."""

    largest: float
    num_wrong: int
    num_tokens: int


def check_logprobs(session: Session, survey: Survey) -> Iterator[Evidence]:
    """Behaviour log-probs, raw log-probs and entropies of everything in the survey."""
    for case in session.plan.cases:
        if case.name not in survey.completions:
            continue
        done = survey.completions[case.name]
        target = session.exact.target(case.prompt)
        behaviour, raw = target.law(case.sampling), target.law(Sampling())
        yield _compare(session, "log-probs/behaviour", case, done, (lambda one: one.logprobs, behaviour))
        yield _compare(session, "log-probs/raw", case, done, (lambda one: one.raw_logprobs, raw))
        yield _entropies(session, case, done, behaviour)


def _compare(
    session: Session, check: str, case: Case, completions: Sequence[Completion], wanted: tuple[Values, Conditional]
) -> Evidence:
    values, conditional = wanted
    if all(math.isnan(value) for done in completions for value in values(done)):
        return Evidence(check=check, refusal="the engine does not return them")
    error = _deviation(completions, values, conditional, session.plan.logprob_tolerance)
    effect = Effect(value=error.largest, unit="error in nats")
    if error.num_wrong == 0:
        return Evidence(check=check, effect=effect)
    fault = f"{error.num_wrong} of {error.num_tokens} tokens are off at {case.name} ({session.label})"
    pattern = _pattern(session, case, completions, values) if error.num_wrong > _MANY * error.num_tokens else None
    return Evidence(check=check, effect=effect, faults=(fault,), pattern=pattern)


def _deviation(completions: Sequence[Completion], values: Values, conditional: Conditional, tolerance: float) -> _Error:
    table = logprob_table(conditional, (done.tokens for done in completions))
    largest, num_wrong, num_tokens = 0.0, 0, 0
    for done in completions:
        for place, (token, value) in enumerate(zip(done.tokens, values(done), strict=True)):
            wanted = table[done.tokens[:place], token]
            error = 0.0 if wanted == value else abs(value - wanted)
            error = error if math.isfinite(error) else math.inf
            largest = max(largest, error)
            num_wrong += error > tolerance
            num_tokens += 1
    return _Error(largest=largest, num_wrong=num_wrong, num_tokens=num_tokens)


def _pattern(session: Session, case: Case, completions: Sequence[Completion], values: Values) -> str | None:
    """Whose log-probs they are instead."""
    target = session.exact.target(case.prompt)
    others = {
        "They are the target's at temperature 1 without truncation (vLLM's default raw_logprobs).": target.law(
            Sampling()
        ),
        "They are tempered but not truncated (SGLang's default).": target.law(
            Sampling(temperature=case.sampling.temperature)
        ),
    }
    if session.written is not None:
        others["They are the draft's, not the target's."] = session.exact.draft(case.prompt).law(case.sampling)
    drafted = [done for done in completions if done.drafts.num_accepted] or completions
    for words, conditional in others.items():
        error = _deviation(drafted, values, conditional, session.plan.logprob_tolerance)
        if error.num_wrong <= (1 - _MOST) * error.num_tokens:
            return words
    if all(value == 0 for done in completions for value in values(done)):
        return "All of them are 0, as in llama.cpp with speculation (llama.cpp#27972)."
    return None


def _entropies(session: Session, case: Case, completions: Sequence[Completion], conditional: Conditional) -> Evidence:
    if all(math.isnan(value) for done in completions for value in done.entropies):
        return Evidence(check="log-probs/entropy", refusal="the engine does not return them")
    prefixes = sorted({done.tokens[:place] for done in completions for place in range(len(done.tokens))})
    laws_NV = conditional(prefixes)
    entropy: dict[Tokens, float] = dict(zip(prefixes, (-laws_NV.xlogy(laws_NV).sum(-1)).tolist(), strict=True))
    errors = [
        abs(value - entropy[done.tokens[:place]]) for done in completions for place, value in enumerate(done.entropies)
    ]
    num_wrong = sum(not error <= session.plan.logprob_tolerance for error in errors)
    fault = f"{num_wrong} of {len(errors)} tokens are off at {case.name} ({session.label})"
    return Evidence(
        check="log-probs/entropy",
        effect=Effect(value=max(errors), unit="error in nats"),
        faults=(fault,) if num_wrong else (),
    )
