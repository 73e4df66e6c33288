"""The exact side of an audit: laws and log-probs of one policy under every prompt and setting, each computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from bebop.audit.laws import Conditional, Law, PrefixLogits, Tokens, ends_after, enumerate_law
from bebop.core.sampling import Sampling
from bebop.models.policy import Policy

LogprobTable = Mapping[tuple[Tokens, int], float]
"""(prefix of the completion, token after it) -> log-probability."""


class ExactPolicy:
    """What a policy and its head say, by enumeration."""

    def __init__(
        self, policy: Policy, max_tokens: int, *, backbone_of: ExactPolicy | None = None, floor: float = 0.0
    ) -> None:
        """Completions have ``max_tokens``. ``backbone_of`` has the same backbone and hands over what is known of it;
        completions rarer than ``floor`` are not told apart."""
        self.max_tokens = max_tokens
        self._policy = policy
        self._floor = floor
        self._targets: dict[Tokens, PrefixLogits] = backbone_of._targets if backbone_of else {}
        self._laws: dict[tuple[Tokens, Sampling], Law] = backbone_of._laws if backbone_of else {}
        self._drafts: dict[Tokens, PrefixLogits] = {}

    def target(self, prompt: Tokens) -> PrefixLogits:
        """The backbone's logits after the prompt and any prefix."""
        if prompt not in self._targets:
            self._targets[prompt] = PrefixLogits(self._policy, prompt)
        return self._targets[prompt]

    def draft(self, prompt: Tokens) -> PrefixLogits:
        """The head's, of an audit's policy."""
        if prompt not in self._drafts:
            self._drafts[prompt] = PrefixLogits(self._policy, prompt, from_head=True)
        return self._drafts[prompt]

    def law(self, prompt: Tokens, sampling: Sampling) -> Law:
        """Of completions that end at ``max_tokens``."""
        key = (prompt, sampling)
        if key not in self._laws:
            conditional = self.target(prompt).law(sampling)
            self._laws[key] = enumerate_law(conditional, ends_after(self.max_tokens), floor=self._floor)
        return self._laws[key]

    def overlap(self, prompt: Tokens, depth: int = 2) -> float:
        """Mean mass that target and draft share at temperature 1, over the target's own prefixes up to ``depth``."""
        plain = Sampling()
        mass: dict[Tokens, float] = {(): 1.0}
        for length in range(1, depth + 1):
            mass |= enumerate_law(self.target(prompt).law(plain), ends_after(length)).masses
        prefixes = list(mass)
        target_NV, draft_NV = self.target(prompt).law(plain)(prefixes), self.draft(prompt).law(plain)(prefixes)
        weights_N = torch.tensor([mass[prefix] for prefix in prefixes], dtype=torch.float64)
        return float((torch.minimum(target_NV, draft_NV).sum(-1) * weights_N).sum() / weights_N.sum())


def logprob_table(conditional: Conditional, completions: Iterable[Tokens]) -> LogprobTable:
    """Log-probabilities of the tokens of completions, each after what is before it."""
    tokens_after: dict[Tokens, set[int]] = {}
    for tokens in completions:
        for place, token in enumerate(tokens):
            tokens_after.setdefault(tokens[:place], set()).add(token)
    if not tokens_after:
        return {}
    prefixes = sorted(tokens_after)
    table: dict[tuple[Tokens, int], float] = {}
    for prefix, law_V in zip(prefixes, conditional(prefixes), strict=True):
        after = sorted(tokens_after[prefix])
        values = law_V[after].log().tolist()
        table |= {(prefix, token): value for token, value in zip(after, values, strict=True)}
    return table
