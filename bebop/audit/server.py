"""The audit of a server, against the policy directory that it is said to serve: sampled laws and log-probs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bebop.audit.checks.controls import check_exact_arm
from bebop.audit.checks.law import check_alive, check_laws, check_rows
from bebop.audit.checks.logprobs import check_logprobs
from bebop.audit.checks.replay import check_replay
from bebop.audit.exact import ExactPolicy
from bebop.audit.host import Host
from bebop.audit.judge import judge
from bebop.audit.laws import Tokens
from bebop.audit.openai import ServerEngine
from bebop.audit.plan import AuditPlan, make_cases
from bebop.audit.records import AuditReport, Evidence
from bebop.audit.run import Told, outlived
from bebop.audit.survey import Session, take_survey
from bebop.errors import UserError
from bebop.models.policy import Policy, load_policy
from bebop.models.quiet import quiet_transformers

_SMALL_VOCABULARY = 26
"""Up to this many tokens, every completion of four is told apart; above it, of two, the likely ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server and what it is said to serve. ``prompt`` is the text that is continued."""

    url: str
    directory: str | Path
    model: str | None = None
    prompt: str = "Once upon a time"


def audit_server(served: Served, plan: AuditPlan, told: Told = lambda _: None) -> AuditReport:
    """What can be seen from outside; the plan's cases get the prompt of ``served``."""
    started = time.monotonic()
    told(f"loading {served.directory}")
    with quiet_transformers():
        policy = load_policy(served.directory, dtype=torch.float32, head="none")
    is_small = policy.config.vocab_size <= _SMALL_VOCABULARY
    plan = replace(plan, cases=make_cases((_prompt(policy, served),)), max_tokens=4 if is_small else 2)
    exact = ExactPolicy(policy, plan.max_tokens, floor=0.0 if is_small else 2 / plan.num_samples)
    told(f"sampling from {served.url}")
    server = ServerEngine(served.url, served.model)
    session = Session(label="served policy", engine=Host(lambda: server), exact=exact, plan=plan)
    evidence = [item for item in outlived(_look(session)) if plan.wants(item.check)]
    return AuditReport(engine=served.url, results=judge(evidence, plan), seconds=time.monotonic() - started)


def _look(session: Session) -> Iterator[Evidence]:
    yield check_exact_arm(session.exact, session.plan)
    survey = take_survey(session)
    yield from check_alive(session, survey)
    yield from check_laws(session, survey)
    yield from check_rows(session, survey)
    yield from check_logprobs(session, survey)
    yield from outlived(check_replay(session, survey))


def _prompt(policy: Policy, served: Served) -> Tokens:
    if policy.tokenizer is None:
        raise UserError(f"{served.directory} has no tokenizer to read the prompt with; add its tokenizer.json")
    tokens = tuple(policy.tokenizer.encode(served.prompt))
    if not tokens:
        raise UserError("the prompt is empty; give a text with --prompt")
    return tokens
