"""Speed of engines side by side on one policy: tokens per second with and without drafts, and their ratio.

Every arm is an engine with a draft length. Arms run in turn within a repetition and ratios are taken within one, as in
``bebop.bench.decode``; all compute in the same dtype with the same number of threads, and every completion is as long
as the others. On one CPU thread time is processor time, otherwise wall time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from bebop.bench.timing import now, spread
from bebop.core.sampling import Sampling
from bebop.engines.base import DraftStats, Engine, Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.vllm import VllmEngine, VllmOptions
from bebop.errors import UserError
from bebop.hardware import accelerators, processor
from bebop.models.policy import Policy, load_policy

EngineName = Literal["embedded", "vllm"]
Prompt = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineBench:
    """What is compared. The first engine is measured against each of the others."""

    engines: tuple[EngineName, ...] = ("embedded", "vllm")
    batches: tuple[int, ...] = (1, 4, 16)
    draft_lengths: tuple[int, ...] = (0, 3)
    rule: str = "rejection"
    tokens: int = 40
    temperature: float = 1.0
    repetitions: int = 5

    def __post_init__(self) -> None:
        for name in self.engines:
            if name not in get_args(EngineName):
                raise UserError(f"there is no engine {name!r} to time; use {', '.join(get_args(EngineName))}")
        if len(set(self.engines)) < 2:
            raise UserError("name two engines to compare, such as embedded,vllm")
        if min((*self.batches, self.tokens, self.repetitions)) < 1:
            raise UserError("batches, tokens and repetitions must be 1 or more; raise the one that is not")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    seconds: float
    tokens: int
    drafts: DraftStats


def bench_engines(
    directory: Path,
    prompts: Sequence[Prompt],
    bench: EngineBench,
    *,
    dtype: torch.dtype = torch.float32,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every engine with every draft length at every batch size; -> JSON-able figures, speeds and ratios."""
    with ExitStack() as stack:
        policy = load_policy(directory, dtype=dtype)
        engines: dict[tuple[EngineName, int], Engine] = {
            (name, k): stack.enter_context(closing(_open(name, k, policy, bench)))
            for name in bench.engines
            for k in bench.draft_lengths
        }
        results = {
            str(batch): dict(_measure(engines, prompts, bench, batch, policy.device, report)) for batch in bench.batches
        }
    return {
        "bench": asdict(bench),
        "policy": {"dtype": str(dtype).removeprefix("torch."), "vocabulary": policy.config.vocab_size},
        "machine": {"processor": processor().name, "accelerators": accelerators(), "threads": torch.get_num_threads()},
        "batches": results,
    }


def _open(name: EngineName, k: int, policy: Policy, bench: EngineBench) -> Engine:
    rows = max(bench.batches)
    if name == "embedded":
        return EmbeddedEngine(policy, EmbeddedOptions(rule=bench.rule, num_draft_tokens=k, max_rows=rows))
    assert policy.source is not None
    dtype: Any = str(policy.dtype).removeprefix("torch.")
    return VllmEngine(policy.source, VllmOptions(rule=bench.rule, num_draft_tokens=k, max_rows=rows, dtype=dtype))


def _measure(
    engines: dict[tuple[EngineName, int], Engine],
    prompts: Sequence[Prompt],
    bench: EngineBench,
    batch: int,
    device: torch.device,
    report: Callable[[str], None],
) -> Iterator[tuple[str, Any]]:
    """Figures of one batch size, by arm; then the ratios."""
    chosen = [prompts[i % len(prompts)] for i in range(batch)]
    runs: dict[tuple[EngineName, int], list[_Run]] = {arm: [] for arm in engines}
    for repetition in range(bench.repetitions + 1):
        for arm, engine in engines.items():
            runs[arm].append(_time(engine, _requests(chosen, bench, repetition), device))
        report(f"batch {batch}: repetition {repetition} of {bench.repetitions} done")
    for done in runs.values():
        done.pop(0)  # warms up
    first = bench.engines[0]
    yield "arms", {f"{name} k{k}": _figures(done) for (name, k), done in runs.items()}
    yield (
        f"{first}_over",
        {f"{name} k{k}": _ratio(runs[first, k], done) for (name, k), done in runs.items() if name != first},
    )


def _time(engine: Engine, requests: list[Request], device: torch.device) -> _Run:
    start = now(device)
    done = engine.generate(requests)
    return _Run(
        seconds=now(device) - start,
        tokens=sum(len(one.tokens) for one in done),
        drafts=sum((one.drafts for one in done), DraftStats()),
    )


def _requests(prompts: list[Prompt], bench: EngineBench, seed: int) -> list[Request]:
    sampling = Sampling(temperature=bench.temperature)
    return [
        Request(id=str(i), prompt_tokens=prompt, max_tokens=bench.tokens, sampling=sampling, seed=seed * 1000 + i)
        for i, prompt in enumerate(prompts)
    ]


def _figures(runs: list[_Run]) -> dict[str, Any]:
    drafts = sum((run.drafts for run in runs), DraftStats())
    return {
        "tokens_per_second": spread([run.tokens / run.seconds for run in runs]),
        "accept_length": drafts.accept_length if drafts.num_drafted else None,
        "acceptance_rate": drafts.acceptance_rate if drafts.num_drafted else None,
    }


def _ratio(runs: list[_Run], base: list[_Run]) -> dict[str, float]:
    """Tokens per second over the base's, within each repetition."""
    return spread([(a.tokens / a.seconds) / (b.tokens / b.seconds) for a, b in zip(runs, base, strict=True)])
