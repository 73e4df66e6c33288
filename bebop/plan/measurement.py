"""Acceptance and costs from a decoding bench: a short one run here, or the file of an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bebop.bench.decode import DecodeBench, Prompt, bench_decode, task_prompts
from bebop.errors import UserError
from bebop.models.policy import Policy
from bebop.plan.decoding import Acceptance, MeasuredCosts, conditional_of
from bebop.tasks.chat import chat_of

REPETITIONS = 3
LENGTHENED_TOKENS = 40
"""Of a completion behind a lengthened prompt, which the policy may end at once or never."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a plan needs to know of a policy on a machine."""

    acceptance: Acceptance
    costs: MeasuredCosts
    prefill_shares: Mapping[int, float]
    """Batch -> share of generation without drafts that is spent on prompts."""
    tokens_per_second: Mapping[int, float]
    """Batch -> speed without drafts."""

    def prefill_share(self, batch: int) -> float:
        """Of the measured batch nearest to this one."""
        nearest = min(self.prefill_shares, key=lambda one: abs(one - batch))
        return self.prefill_shares[nearest]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be measured."""

    batches: tuple[int, ...]
    max_drafts: int
    rule: str = "rejection"
    temperature: float = 1.0
    tasks: tuple[str, ...] = ("math", "code", "agent")
    """Their opening prompts take turns."""
    tokens: int = 128
    """Of a completion at most: it ends where the policy ends it. What is behind that the head was not trained on, and
    rows that all end together are cheaper without drafts than those of rollouts."""
    context: int = 0
    """Tokens of a prompt for the costs, if longer than the tasks' own; acceptance is always that of the tasks'."""

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        """No drafts, half of the most, the most: what lies between is interpolated."""
        return tuple(sorted({0, (self.max_drafts + 1) // 2, self.max_drafts}))

    def bench(self, batches: tuple[int, ...], tokens: int, stop_token_ids: tuple[int, ...] = ()) -> DecodeBench:
        return DecodeBench(
            batches=batches,
            draft_lengths=self.draft_lengths,
            rule=self.rule,
            tokens=tokens,
            stop_token_ids=stop_token_ids,
            temperature=self.temperature,
            repetitions=REPETITIONS,
            generate=False,
        )


def measure(policy: Policy, wanted: Wanted, tick: Callable[[str], None]) -> Measured:
    """Run the bench, a minute or so; with a context longer than the prompts, once more for the costs."""
    stop_token_ids = chat_of(policy.tokenizer).stop_tokens
    bench = wanted.bench(wanted.batches, wanted.tokens, stop_token_ids)
    prompts = prompts_in_turn(policy, wanted.tasks, bench.num_prompts)
    if wanted.context <= max(map(len, prompts)):
        return from_bench(bench_decode(policy, prompts, bench, tick))
    room = policy.config.max_position_embeddings - LENGTHENED_TOKENS
    if wanted.context > room:
        raise UserError(
            f"a context of {wanted.context} and {LENGTHENED_TOKENS} tokens do not fit; give --context {room}"
        )
    largest = wanted.bench((max(wanted.batches),), wanted.tokens, stop_token_ids)
    plain = from_bench(bench_decode(policy, prompts, largest, tick))
    padded = [lengthened(prompt, wanted.context) for prompt in prompts]
    costs = from_bench(bench_decode(policy, padded, wanted.bench(wanted.batches, LENGTHENED_TOKENS), tick))
    return Measured(
        acceptance=plain.acceptance,
        costs=costs.costs,
        prefill_shares=costs.prefill_shares,
        tokens_per_second=costs.tokens_per_second,
    )


def prompts_in_turn(policy: Policy, tasks: Sequence[str], count: int) -> list[Prompt]:
    """At least ``count`` prompts, of every task in turn."""
    by_task = [task_prompts(policy, task, -(-count // len(tasks))) for task in tasks]
    return [prompt for turn in zip(*by_task, strict=True) for prompt in turn]


def num_ticks(wanted: Wanted) -> int:
    """How often ``measure`` ticks at most."""
    return REPETITIONS * (len(wanted.batches) + (1 if wanted.context else 0))


def lengthened(prompt: Prompt, length: int) -> Prompt:
    """The prompt, said again until it has so many tokens."""
    return (prompt * (length // len(prompt) + 1))[:length]


def from_bench(result: Mapping[str, Any]) -> Measured:
    """From the figures of ``bebop.bench.decode``; UserError for anything else, or where nothing was drafted."""
    try:
        batches = {int(batch): engine_arms(figures["arms"]) for batch, figures in result["batches"].items()}
        costs = {batch: {k: round_seconds(batch, arm) for k, arm in arms.items()} for batch, arms in batches.items()}
        measured = Measured(
            acceptance=acceptance_of([arm for arms in batches.values() for k, arm in arms.items() if k > 0]),
            costs=MeasuredCosts(table=costs),
            prefill_shares={batch: float(arms[0]["prefill_share"]) for batch, arms in batches.items()},
            tokens_per_second={batch: speed_of(arms[0]) for batch, arms in batches.items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            "these are not the figures of this version's `bebop bench decode --json`; measure again and give that file"
        ) from error
    return measured


def engine_arms(arms: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Fixed draft length -> figures; ``auto`` and other programs' arms are left out."""
    return {int(label[1:]): arm for label, arm in arms.items() if label[:1] == "k" and label[1:].isdigit()}


def speed_of(arm: Mapping[str, Any]) -> float:
    return float(arm["tokens_per_second"]["median"])


def round_seconds(batch: int, arm: Mapping[str, Any]) -> float:
    """A round gives every row ``accept_length`` tokens, so its time follows from the speed without prompts.

    Rows that end before others leave the batch smaller towards the end; that cost is in here, as it is in rollouts.
    """
    length = float(arm["accept_length"] or 1.0)
    return length * batch / float(arm["decode_tokens_per_second"]["median"])


def acceptance_of(arms: Sequence[Mapping[str, Any]]) -> Acceptance:
    """From the arms with the most drafts, averaged over the batches; the law is the same in all of them."""
    if not arms:
        raise UserError("nothing was drafted in this bench; measure a draft length above 0, such as --k 0,3")
    most = max(len(arm["survival_by_depth"]) for arm in arms)
    full = [arm["survival_by_depth"] for arm in arms if len(arm["survival_by_depth"]) == most]
    survivals = [sum(column) / len(full) for column in zip(*full, strict=True)]
    return Acceptance(conditional_K=conditional_of(survivals))
