"""Token sequences that the policy sampled, and in which step each is learned.

Shapes: none; sequences are lists until they are padded (``transcripts.pad``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bebop.errors import UserError
from bebop.rows import shuffled
from bebop.tasks.chat import Transcript


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sequence, with the tokens that the policy sampled marked."""

    id: str
    """Names it in messages; unique within a data set."""
    transcript: Transcript

    @property
    def num_tokens(self) -> int:
        return len(self.transcript.tokens)

    @property
    def has_chain(self) -> bool:
        """Whether some token of the policy has the two tokens before it that a draft needs."""
        return any(self.transcript.is_model[2:])


SampleSource = Callable[[int], list[Sample]]
"""step -> the samples of that step."""


def usable(samples: Sequence[Sample], vocab_size: int, max_tokens: int, origin: str) -> list[Sample]:
    """Samples cut to ``max_tokens``, without those that have nothing to learn; UserError where none is left."""
    for one in samples:
        if not all(0 <= token < vocab_size for token in one.transcript.tokens):
            worst = max(one.transcript.tokens, key=abs)
            raise UserError(
                f"{origin}: {one.id} has token {worst}, outside the policy's vocabulary of {vocab_size}; "
                "the data was made with another tokenizer, so collect it with this policy"
            )
    kept = [one for one in (cut(one, max_tokens) for one in samples) if one.has_chain]
    if not kept:
        raise UserError(
            f"{origin} marks no token of the policy within the first {max_tokens}; "
            "set is_model where the policy wrote, or raise data.max_tokens"
        )
    return kept


def cut(sample: Sample, max_tokens: int) -> Sample:
    written = sample.transcript
    if sample.num_tokens <= max_tokens:
        return sample
    return Sample(id=sample.id, transcript=Transcript(written.tokens[:max_tokens], written.is_model[:max_tokens]))


def epochs(samples: Sequence[Sample], per_step: int, seed: int) -> SampleSource:
    """Every sample once an epoch, in a new order each time; a function of the step alone."""

    def of_step(step: int) -> list[Sample]:
        numbers = range(step * per_step, (step + 1) * per_step)
        orders = {epoch: shuffled(len(samples), seed, epoch) for epoch in {n // len(samples) for n in numbers}}
        return [samples[orders[number // len(samples)][number % len(samples)]] for number in numbers]

    return of_step


class HasTokens(Protocol):
    """Anything that is a sequence of tokens."""

    @property
    def num_tokens(self) -> int: ...


Sequenced = TypeVar("Sequenced", bound=HasTokens)


def by_length(samples: Sequence[Sequenced], token_budget: int) -> list[list[Sequenced]]:
    """Groups of samples of like length, at most ``token_budget`` tokens each with padding; a longer sample is alone."""
    groups: list[list[Sequenced]] = []
    group: list[Sequenced] = []
    for one in sorted(samples, key=lambda one: one.num_tokens):
        if group and one.num_tokens * (len(group) + 1) > token_budget:
            groups.append(group)
            group = []
        group.append(one)
    return [*groups, group] if group else groups
