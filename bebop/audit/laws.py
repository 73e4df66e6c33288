"""Exact laws of completions by enumeration, from the policy run plainly over every prefix.

Shape letters: N prefixes, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bebop.core.sampling import Sampling, distribution
from bebop.models.policy import Policy

Tokens = tuple[int, ...]
Conditional = Callable[[Sequence[Tokens]], Tensor]
"""Prefixes of a completion -> the law [N, V] of the token after each, float64."""
IsEnd = Callable[[Tokens], bool]
"""Whether a completion is over."""

_ROWS_AT_ONCE = 512


class PrefixLogits:
    """Logits after a prompt and a prefix of the completion, computed once each and kept.

    ``from_head`` takes the head's instead of the target's: those of an audit's heads, which see tokens alone.
    """

    def __init__(self, policy: Policy, prompt: Tokens, *, from_head: bool = False) -> None:
        self.prompt = prompt
        self._policy = policy
        self._from_head = from_head
        self._known: dict[Tokens, Tensor] = {}

    def __call__(self, prefixes: Sequence[Tokens]) -> Tensor:
        """[N, V] in float64."""
        new = sorted({prefix for prefix in prefixes if prefix not in self._known}, key=lambda p: (len(p), p))
        for batch in _batches(new):
            self._known |= dict(zip(batch, self._run(batch), strict=True))
        return torch.stack([self._known[prefix] for prefix in prefixes])

    def law(self, sampling: Sampling) -> Conditional:
        """The law of the next token under ``sampling``."""
        return lambda prefixes: distribution(self(prefixes), sampling)

    @torch.inference_mode()
    def _run(self, prefixes: Sequence[Tokens]) -> Tensor:
        tokens_NT = torch.tensor([self.prompt + prefix for prefix in prefixes], device=self._policy.device)
        if self._from_head:
            return self._policy.logits(self._head_output(tokens_NT)).double().cpu()
        hidden_NTH = self._policy.run_backbone(tokens_NT).hidden_BTH
        return self._policy.logits(hidden_NTH[:, -1]).double().cpu()

    def _head_output(self, tokens_NT: Tensor) -> Tensor:
        """What the head makes of the tokens [N, H]; the first one is never an input of it, unless it is alone."""
        assert self._policy.head is not None
        embeds_NTH = self._policy.embed(tokens_NT)
        if tokens_NT.shape[1] > 1:
            embeds_NTH = embeds_NTH[:, 1:]
        positions_1T = torch.arange(embeds_NTH.shape[1], device=tokens_NT.device)[None]
        positions_NT = positions_1T.expand(len(tokens_NT), -1)
        state = self._policy.head(torch.zeros_like(embeds_NTH), embeds_NTH, positions_NT)
        return state.output_BTH[:, -1]


def _batches(prefixes: Sequence[Tokens]) -> Iterator[Sequence[Tokens]]:
    """Runs of prefixes that have one length, which must be sorted by it."""
    start = 0
    while start < len(prefixes):
        length = len(prefixes[start])
        stop = start
        while stop < min(len(prefixes), start + _ROWS_AT_ONCE) and len(prefixes[stop]) == length:
            stop += 1
        yield prefixes[start:stop]
        start = stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """The chance of every completion; those too rare to enumerate are together in ``rest``."""

    masses: Mapping[Tokens, float]
    rest: float = 0.0

    def project(self, view: Callable[[Tokens], Tokens]) -> Law:
        """The law of ``view(completion)``."""
        masses: dict[Tokens, float] = {}
        for outcome, mass in self.masses.items():
            seen = view(outcome)
            masses[seen] = masses.get(seen, 0.0) + mass
        return Law(masses=masses, rest=self.rest)

    def sample(self, num_samples: int, generator: torch.Generator) -> list[Tokens]:
        """Independent draws; one from the rest is (), which no completion is."""
        whole = {**self.masses, (): self.rest} if self.rest > 0 else self.masses
        outcomes = list(whole)
        weights = torch.tensor(list(whole.values()), dtype=torch.float64)
        drawn = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
        return [outcomes[index] for index in drawn.tolist()]


def enumerate_law(conditional: Conditional, is_end: IsEnd, *, floor: float = 0.0) -> Law:
    """The law of completions that go on until ``is_end``; what falls below the chance ``floor`` goes into ``rest``."""
    finished: dict[Tokens, float] = {}
    rest = 0.0
    frontier: dict[Tokens, float] = {(): 1.0}
    while frontier:
        prefixes = list(frontier)
        longer: dict[Tokens, float] = {}
        for prefix, law_V in zip(prefixes, conditional(prefixes), strict=True):
            joint_V = frontier[prefix] * law_V
            kept_N = ((joint_V > 0) & (joint_V >= floor)).nonzero().flatten()
            joint_N = joint_V[kept_N]
            rest += float(joint_V.sum() - joint_N.sum())
            for token, mass in zip(kept_N.tolist(), joint_N.tolist(), strict=True):
                outcome = (*prefix, token)
                (finished if is_end(outcome) else longer)[outcome] = mass
        frontier = longer
    return Law(masses=finished, rest=max(rest, 0.0) if rest > 1e-12 else 0.0)


def ends_after(max_tokens: int, stop_tokens: Tokens = ()) -> IsEnd:
    """Completions end at a stop token or at the last place."""
    return lambda tokens: len(tokens) >= max_tokens or tokens[-1] in stop_tokens


def ends_with_text(max_tokens: int, stop: Tokens) -> IsEnd:
    """Completions end where these tokens stand in a row, or at the last place."""
    return lambda tokens: len(tokens) >= max_tokens or tokens[-len(stop) :] == stop


def mixture(one: Conditional, other: Conditional, share: float) -> Conditional:
    """``other`` with probability ``share``, else ``one``, at every token."""
    return lambda prefixes: (1 - share) * one(prefixes) + share * other(prefixes)
