"""The exact side of an audit: laws and log-probs of one policy under every prompt and setting, each computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from bebop.audit.laws import Conditional, Law, PrefixLogits, Tokens, ends_after, enumerate_law
from bebop.audit.plan import MAX_TOKENS
from bebop.core.sampling import Sampling
from bebop.models.policy import Policy

LogprobTable = Mapping[tuple[Tokens, int], float]
"""(prefix of the completion, token after it) -> log-probability."""


class ExactPolicy:
    """What a policy and its head say, by enumeration."""

    def __init__(self, policy: Policy, *, floor: float = 0.0) -> None:
        self._policy = policy
        self._floor = floor
        self._logits: dict[tuple[Tokens, bool], PrefixLogits] = {}
        self._laws: dict[tuple[Tokens, Sampling], Law] = {}

    def target(self, prompt: Tokens) -> PrefixLogits:
        """The backbone's logits after the prompt and any prefix."""
        return self._of(prompt, from_head=False)

    def draft(self, prompt: Tokens) -> PrefixLogits:
        """The head's, of an audit's policy."""
        return self._of(prompt, from_head=True)

    def law(self, prompt: Tokens, sampling: Sampling, max_tokens: int = MAX_TOKENS) -> Law:
        """Of completions with exactly ``max_tokens`` tokens."""
        key = (prompt, sampling)
        if key not in self._laws:
            conditional = self.target(prompt).law(sampling)
            self._laws[key] = enumerate_law(conditional, ends_after(max_tokens), floor=self._floor)
        return self._laws[key]

    def overlap(self, prompt: Tokens, draft: PrefixLogits, depth: int = 2) -> float:
        """Mean mass that target and draft share at temperature 1, over the target's own prefixes up to ``depth``."""
        plain = Sampling()
        mass: dict[Tokens, float] = {(): 1.0}
        for length in range(1, depth + 1):
            mass |= enumerate_law(self.target(prompt).law(plain), ends_after(length)).masses
        prefixes = list(mass)
        target_NV, draft_NV = self.target(prompt).law(plain)(prefixes), draft.law(plain)(prefixes)
        weights_N = torch.tensor([mass[prefix] for prefix in prefixes], dtype=torch.float64)
        return float((torch.minimum(target_NV, draft_NV).sum(-1) * weights_N).sum() / weights_N.sum())

    def _of(self, prompt: Tokens, *, from_head: bool) -> PrefixLogits:
        key = (prompt, from_head)
        if key not in self._logits:
            self._logits[key] = PrefixLogits(self._policy, prompt, from_head=from_head)
        return self._logits[key]


def logprob_table(conditional: Conditional, completions: Iterable[Tokens]) -> LogprobTable:
    """Log-probabilities of every token after every prefix that occurs."""
    prefixes = sorted({tokens[:place] for tokens in completions for place in range(len(tokens))})
    if not prefixes:
        return {}
    rows = conditional(prefixes).log().tolist()
    return {
        (prefix, token): value for prefix, row in zip(prefixes, rows, strict=True) for token, value in enumerate(row)
    }
