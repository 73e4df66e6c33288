"""Speed of the embedded engine: draft lengths against no drafts, and no drafts against transformers' ``generate``.

All arms run in turn within every repetition, so that a slow moment hits all alike, and ratios are taken within a
repetition. Requests are several times as many as rows, so that the batch is full until the last ones end: with drafts
rows end at different times. ``decode`` figures leave out the time spent on prompts. On one CPU thread, time is
processor time, which other programs on the machine disturb least; otherwise it is wall time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from bebop.bench.timing import now, spread
from bebop.core.sampling import Sampling
from bebop.engines.base import DraftStats, Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.embedded.clock import Phase
from bebop.errors import UserError
from bebop.hardware import accelerators, processor
from bebop.models.policy import Policy
from bebop.tasks.base import Split
from bebop.tasks.chat import chat_of
from bebop.tasks.registry import load_task

DraftLength = int | Literal["auto"]
Prompt = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeBench:
    """What is measured; sampling is at ``temperature``, untruncated.

    ``tokens`` is the length of every completion. Behind its own end a completion is nothing that the policy writes or
    that its head was trained on, so this should not be longer than completions are.
    """

    batches: tuple[int, ...] = (1, 4, 8, 16)
    draft_lengths: tuple[DraftLength, ...] = (0, 1, 2, 3, 5)
    rule: str = "rejection"
    tokens: int = 40
    requests_per_row: int = 3
    temperature: float = 1.0
    repetitions: int = 5
    generate: bool = True
    """Whether transformers' ``generate`` is an arm."""
    lean: bool = True
    draft_vocabulary: bool = True
    """Whether the head drafts from its own vocabulary, where it has one."""
    stop_token_ids: tuple[int, ...] = ()
    """Where given, completions end with one of these, as rollouts do, after ``tokens`` at most."""

    def __post_init__(self) -> None:
        if 0 not in self.draft_lengths:
            raise UserError("the draft lengths must include 0, against which the others are measured; add it")
        if min((*self.batches, self.tokens, self.requests_per_row, self.repetitions)) < 1:
            raise UserError(
                "batches, tokens, requests per row and repetitions must be 1 or more; raise the one that is not"
            )
        if self.generate and self.stop_token_ids:
            raise UserError("generate's completions do not end early; leave it out, or the stop tokens")

    @property
    def num_prompts(self) -> int:
        """How many the largest batch uses."""
        return max(self.batches) * self.requests_per_row


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """One arm, once: seconds of all its tokens, and what the engine says of it."""

    seconds: float
    tokens: int
    drafts: DraftStats
    phases: dict[str, float]

    @property
    def speed(self) -> float:
        """Tokens per second, prompts and all."""
        return self.tokens / self.seconds

    @property
    def prefill_share(self) -> float:
        """Of the seconds; the engine's clock shows wall time, so its parts are taken as shares."""
        return self.phases[Phase.PREFILL.value] / sum(self.phases.values())

    @property
    def decode_speed(self) -> float:
        """Tokens per second of drafting, verifying, sampling and the host's part."""
        return self.speed / (1 - self.prefill_share)


Arm = Callable[[int], _Run]
"""Runs a repetition, whose number seeds it."""


def bench_decode(
    policy: Policy, prompts: Sequence[Prompt], bench: DecodeBench, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every arm at every batch size; -> JSON-able figures, seconds and ratios.

    Prompts are used in turn, so that every batch size has as many as it needs.
    """
    results = [dict(_measure(policy, prompts, bench, batch, report)) for batch in bench.batches]
    return {
        "bench": asdict(bench),
        "policy": {"dtype": str(policy.dtype).removeprefix("torch."), "vocabulary": policy.config.vocab_size},
        "machine": {"processor": processor().name, "accelerators": accelerators(), "threads": torch.get_num_threads()},
        "batches": {str(batch): result for batch, result in zip(bench.batches, results, strict=True)},
    }


def task_prompts(policy: Policy, task: str, count: int) -> list[Prompt]:
    """Opening prompts of a task's held-out problems, in the policy's chat format."""
    chat = chat_of(policy.tokenizer)
    source = load_task(task)
    problems = (source.problem(Split.HELDOUT, index) for index in range(count))
    return [tuple(chat.open(problem.messages)) for problem in problems]


def _measure(
    policy: Policy, prompts: Sequence[Prompt], bench: DecodeBench, batch: int, report: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """Figures of one batch size, by arm; then the ratios."""
    chosen = [prompts[i % len(prompts)] for i in range(batch * bench.requests_per_row)]
    arms: dict[str, Arm] = {f"k{k}": _engine_arm(policy, chosen, bench, batch, k) for k in bench.draft_lengths}
    engines = list(arms)
    if bench.generate:
        arms["generate"] = _generate_arm(policy, chosen[:batch], bench)
    for arm in arms.values():
        arm(0)
    runs: dict[str, list[_Run]] = {label: [] for label in arms}
    for repetition in range(1, bench.repetitions + 1):
        for label, arm in arms.items():
            runs[label].append(arm(repetition))
        report(f"batch {batch}: repetition {repetition} of {bench.repetitions} done")
    yield "arms", {label: _figures(done) for label, done in runs.items()}
    others = [label for label in arms if label != "k0"]
    yield "speed_over_k0", {label: _ratio(runs[label], runs["k0"], lambda run: run.speed) for label in others}
    yield (
        "decode_speed_over_k0",
        {label: _ratio(runs[label], runs["k0"], lambda run: run.decode_speed) for label in others if label in engines},
    )


def _figures(runs: list[_Run]) -> dict[str, Any]:
    """Medians, acceptance over all runs, and where the time of the rounds went (prefill is no part of them)."""
    drafts = sum((run.drafts for run in runs), DraftStats())
    seconds = {phase: sum(run.phases[phase] for run in runs) for phase in runs[0].phases}
    prefill = seconds.pop(Phase.PREFILL.value, 0.0)
    total = sum(seconds.values())
    return {
        "num_tokens": runs[0].tokens,
        "tokens_per_second": spread([run.speed for run in runs]),
        **({"decode_tokens_per_second": spread([run.decode_speed for run in runs])} if total else {}),
        "accept_length": drafts.accept_length if drafts.rounds else None,
        "acceptance_rate": drafts.acceptance_rate if drafts.num_drafted else None,
        "survival_by_depth": [accepted / drafts.rounds for accepted in drafts.accepted],
        "overlap_by_depth": [o / r for o, r in zip(drafts.overlaps, drafts.reached, strict=True) if r],
        "round_shares": {phase: value / total for phase, value in seconds.items()},
        "prefill_share": prefill / (prefill + total) if total else 0.0,
    }


def _ratio(runs: list[_Run], base: list[_Run], speed: Callable[[_Run], float]) -> dict[str, float]:
    """A speed over the base's, within each repetition."""
    return spread([speed(a) / speed(b) for a, b in zip(runs, base, strict=True)])


def _engine_arm(
    policy: Policy, prompts: list[Prompt], bench: DecodeBench, batch: int, draft_length: DraftLength
) -> Arm:
    options = EmbeddedOptions(
        rule=bench.rule,
        num_draft_tokens=draft_length,
        max_rows=batch,
        lean=bench.lean,
        draft_vocabulary=bench.draft_vocabulary,
        synchronise=policy.device.type == "cuda",
    )
    engine = EmbeddedEngine(policy, options)
    clock = engine.clock.seconds

    def arm(seed: int) -> _Run:
        before = dict(clock)
        start = now(policy.device)
        done = engine.generate(_requests(prompts, bench, seed))
        seconds = now(policy.device) - start
        return _Run(
            seconds=seconds,
            tokens=sum(len(completion.tokens) for completion in done),
            drafts=sum((completion.drafts for completion in done), DraftStats()),
            phases={phase.value: clock[phase] - before[phase] for phase in Phase},
        )

    return arm


def _requests(prompts: list[Prompt], bench: DecodeBench, seed: int) -> list[Request]:
    sampling = Sampling(temperature=bench.temperature)
    return [
        Request(
            id=str(i),
            prompt_tokens=prompt,
            max_tokens=bench.tokens,
            sampling=sampling,
            seed=seed * len(prompts) + i,
            stop_token_ids=bench.stop_token_ids,
        )
        for i, prompt in enumerate(prompts)
    ]


def _generate_arm(policy: Policy, prompts: list[Prompt], bench: DecodeBench) -> Arm:
    """transformers' ``generate`` on the same prompts, padded on the left, without stopping early."""
    width = max(map(len, prompts))
    tokens_BT = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=policy.device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    sampled = bench.temperature > 0
    settings: dict[str, Any] = {"do_sample": sampled, "pad_token_id": 0, "eos_token_id": None}
    if sampled:
        settings |= {"temperature": bench.temperature, "top_k": 0, "top_p": 1.0}

    def arm(seed: int) -> _Run:
        torch.manual_seed(seed)
        start = now(policy.device)
        with torch.inference_mode():
            policy.backbone.generate(  # pyright: ignore[reportCallIssue]
                tokens_BT, attention_mask=mask_BT, max_new_tokens=bench.tokens, **settings
            )
        seconds = now(policy.device) - start
        return _Run(seconds=seconds, tokens=bench.tokens * len(prompts), drafts=DraftStats(), phases={})

    return arm
