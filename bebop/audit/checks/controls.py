"""The audit's own arms: samples of the exact law, which must pass, and of a biased one, which must not."""

from __future__ import annotations

import torch

from bebop.audit.checks.law import view_fits
from bebop.audit.exact import ExactPolicy
from bebop.audit.fit import Fit, pooled
from bebop.audit.laws import Law, ends_after, enumerate_law, mixture
from bebop.audit.plan import AuditPlan, Case
from bebop.audit.records import Effect, Evidence
from bebop.core.sampling import Sampling

BIAS = 0.05
"""Share of tokens that the biased arm takes from an adversarial head. For one target mass of 0.60 against a draft's
of 0.02 that makes 0.57: the size of the bias that vLLM shipped (vllm#54282: 0.60 became 0.63)."""


def check_exact_arm(exact: ExactPolicy, plan: AuditPlan) -> Evidence:
    """Samples of the exact laws, as many as the engine is asked for."""
    laws = [exact.law(case.prompt, case.sampling) for case in plan.cases if case.is_sampled]
    return Evidence(check="control/exact", fits=_arm(laws, laws, plan))


def check_biased_arm(exact: ExactPolicy, plan: AuditPlan) -> Evidence:
    """Samples of laws mixed with the head's. Where truncated they would leave the support, which is seen at once."""
    whole = [case for case in plan.cases if case.is_sampled and case.sampling == _untruncated(case)]
    laws = [exact.law(case.prompt, case.sampling) for case in whole]
    biased = [_biased(exact, case) for case in whole]
    distance = sum(_distance(one, other) for one, other in zip(laws, biased, strict=True)) / len(laws)
    effect = Effect(value=distance, unit="TV, first token")
    return Evidence(check="control/biased", fits=_arm(biased, laws, plan), effect=effect)


def _untruncated(case: Case) -> Sampling:
    return Sampling(temperature=case.sampling.temperature)


def _arm(sampled: list[Law], tested: list[Law], plan: AuditPlan) -> tuple[Fit, ...]:
    """Samples of some laws, tested against others, case by case and together."""
    generator = torch.Generator().manual_seed(plan.seed)
    by_case = [
        view_fits("control", source.sample(plan.num_samples, generator), law, plan.views)
        for source, law in zip(sampled, tested, strict=True)
    ]
    together = [pooled(view, [fits[place] for fits in by_case]) for place, view in enumerate(plan.views)]
    return tuple(one for fits in (*by_case, together) for one in fits)


def _biased(exact: ExactPolicy, case: Case) -> Law:
    prompt = case.prompt
    target, draft = exact.target(prompt).law(case.sampling), exact.draft(prompt).law(case.sampling)
    return enumerate_law(mixture(target, draft, BIAS), ends_after(exact.max_tokens))


def _distance(one: Law, other: Law) -> float:
    first, second = (law.project(lambda tokens: tokens[:1]).masses for law in (one, other))
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in {*first, *second}) / 2
