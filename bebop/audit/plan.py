"""How large an audit is, and which settings it tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bebop.audit.laws import Tokens
from bebop.audit.policies import DraftKind, Format
from bebop.core.sampling import GREEDY, Sampling
from bebop.errors import UserError

PROMPTS: tuple[Tokens, ...] = ((3, 1, 4), (1, 5, 2, 6, 5, 3))
ONE_TOKEN: Tokens = (2,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A sampling setting, the check that it belongs to, and the prompt it is tried on."""

    name: str
    check: str
    sampling: Sampling
    prompt: Tokens

    @property
    def is_sampled(self) -> bool:
        return not self.sampling.is_greedy


def make_cases(prompts: Sequence[Tokens]) -> tuple[Case, ...]:
    """Every setting; the first is plain. Prompts take turns, so that a batch holds different lengths.

    No case has both min-p and top-p: engines apply them in different orders.
    """
    settings = (
        ("T=1", "temperature-1", Sampling()),
        ("T=0.4", "temperature", Sampling(temperature=0.4)),
        ("T=1.4", "temperature", Sampling(temperature=1.4)),
        ("top-k 4", "top-k", Sampling(top_k=4)),
        ("T=1.2 top-p 0.7", "top-p", Sampling(temperature=1.2, top_p=0.7)),
        ("min-p 0.2", "min-p", Sampling(min_p=0.2)),
        ("T=0.8 top-k 6 top-p 0.9", "combined", Sampling(temperature=0.8, top_k=6, top_p=0.9)),
        ("greedy", "greedy", GREEDY),
    )
    return tuple(
        Case(name=name, check=f"law/{check}", sampling=sampling, prompt=prompts[number % len(prompts)])
        for number, (name, check, sampling) in enumerate(settings)
    )


SHORT_PROMPT = Case(name="one-token prompt", check="law/short-prompt", sampling=Sampling(), prompt=ONE_TOKEN)

View = Callable[[Tokens], Tokens]
_VIEWS: Mapping[str, tuple[int, int | None]] = MappingProxyType(
    {"token 1": (0, 1), "tokens 1-2": (0, 2), "tokens 2-3": (1, 3), "tokens 3-4": (2, 4), "whole": (0, None)}
)
FIRST, LATER = "token 1", "tokens 2-3"


def views(max_tokens: int) -> dict[str, View]:
    """What of a completion is tested, each against its own exact law."""
    return {name: _slice(start, stop) for name, (start, stop) in _VIEWS.items() if start < max_tokens}


def _slice(start: int, stop: int | None) -> View:
    return lambda tokens: tokens[start:stop]


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditPlan:
    """Sizes and tolerances.

    ``num_samples`` are completions per head and setting. ``alpha`` bounds the chance that an exact engine fails.
    ``law_tolerance`` is a total variation that is no failure even where it is certain, ``logprob_tolerance`` (nats) the
    error allowed a log-prob: both are for engines that compute less precisely than float32.
    """

    formats: tuple[Format, ...] = (Format.MIMO,)
    drafts: tuple[DraftKind, ...] = (DraftKind.OPPOSITE, DraftKind.ECHO)
    num_samples: int = 1200
    vocabulary: int = 8
    num_draft_tokens: int = 3
    cases: tuple[Case, ...] = (*make_cases(PROMPTS), SHORT_PROMPT)
    max_tokens: int = 4
    """Of a completion whose law is enumerated: several rounds, also where the first token comes from the prefill."""
    seed: int = 0
    alpha: float = 1e-3
    law_tolerance: float = 0.0
    logprob_tolerance: float = 1e-3
    only: tuple[str, ...] = ()
    """Names of checks, or their groups before the slash; empty = all."""

    def __post_init__(self) -> None:
        if self.num_samples < 100:
            raise UserError(f"an audit with {self.num_samples} samples sees nothing; ask for 100 or more")
        if not 8 <= self.vocabulary <= 26:
            raise UserError(f"the vocabulary is {self.vocabulary}; an audit enumerates 8 to 26 tokens")
        if self.num_draft_tokens < 1:
            raise UserError(f"an audit of speculation needs draft tokens; num_draft_tokens is {self.num_draft_tokens}")

    @property
    def plain(self) -> Case:
        """Temperature 1, nothing truncated."""
        return self.cases[0]

    @property
    def views(self) -> dict[str, View]:
        """By name, what of a completion is tested."""
        return views(self.max_tokens)

    def wants(self, name: str) -> bool:
        """Whether a check, or any check of a group, is asked for."""
        group = name.partition("/")[0]
        return not self.only or any(one in (name, group) or one.partition("/")[0] == name for one in self.only)


QUICK = AuditPlan()
FULL = AuditPlan(formats=tuple(Format), drafts=tuple(DraftKind), num_samples=5000)
