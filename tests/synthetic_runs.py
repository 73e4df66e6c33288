"""Run directories as `bebop train-rl`, `bebop train-mtp` and `bebop eval-mtp` write them, with known truths inside."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bebop.metrics import Mean, MetricsWriter, MetricValue
from bebop.runs import Provenance

EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0, math.inf)
TASKS = ("math", "code", "agent")
START = datetime(2026, 11, 1, 9, 0, tzinfo=UTC).timestamp()
NASTY = "</script x></script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'x' %{y} <b>bold</b>\n"
TEXTS = ("The", " answer", " is", " 12", ".", "\n", " so", " we", " add", " 7", " =", " 19", "<|end|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticRun:
    """What is true of a run. Accept length = ``length`` + ``slope`` x (entropy - 0.9), plus noise of the steps."""

    name: str
    mode: str = "frozen"
    rule: str = "rejection"
    steps: int = 40
    length: float = 3.2
    slope: float = -0.1
    drift: float = 0.0
    """Accept length lost over the run that entropy does not explain."""
    step_seconds: float = 4.0
    generation_seconds: float = 3.0
    max_lag: int = 2
    seed: int = 0


BASELINE = SyntheticRun(name="no-mtp", mode="none", step_seconds=7.6, generation_seconds=7.2)
FROZEN = SyntheticRun(name="frozen-e2e_tv")
TARGET_ONLY = SyntheticRun(
    name="target-only-ce",
    rule="target_only",
    length=2.1,
    slope=-1.5,
    drift=0.1,
    step_seconds=5.5,
    generation_seconds=4.9,
    seed=1,
)
ARMS = (BASELINE, TARGET_ONLY, FROZEN)


def entropy_at(run: SyntheticRun, step: int) -> float:
    """Falls over the run, as under GRPO, with a wave in it."""
    return 0.9 - 0.35 * step / run.steps + 0.04 * math.sin(step / 2.3 + run.seed)


def length_at(run: SyntheticRun, step: int, noise: float) -> float:
    raw = run.length + run.slope * (entropy_at(run, step) - 0.9) - run.drift * step / run.steps + 0.03 * noise
    return min(3.95, max(1.0, raw))


def write_rl_run(parent: Path, run: SyntheticRun) -> Path:
    """A `train-rl` directory."""
    path = parent / run.name
    path.mkdir(parents=True)
    config = {
        "policy": "runs/head/policy",
        "output": str(path / "policy"),
        "steps": run.steps,
        "mtp": {"mode": run.mode, "rule": run.rule, "k": 3},
        "async": {"max_lag": run.max_lag},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    write_provenance(path, f"bebop train-rl configs/train-rl-tiny.yaml run={path.name}")
    rng = np.random.default_rng(run.seed)
    writer = MetricsWriter(path / "metrics.jsonl")
    for step in range(run.steps + 1):
        writer.write(step, metrics_at(run, step, rng))
    writer.close()
    rows = [bins_at(run, step, rng) for step in range(1, run.steps + 1)] if run.mode != "none" else []
    write_lines(path / "bins.jsonl", rows)
    write_lines(path / "transcripts.jsonl", [transcript(run, step, rng) for step in range(1, run.steps + 1)])
    return path


def metrics_at(run: SyntheticRun, step: int, rng: np.random.Generator) -> dict[str, MetricValue]:
    values: dict[str, MetricValue] = {}
    if step % 10 == 0:
        values |= {f"heldout_reward/{task}": Mean(reward_at(run, step, task) * 64, 64) for task in TASKS}
        values["heldout_reward"] = Mean(sum(reward_at(run, step, task) * 64 for task in TASKS), 192)
    if step == 0:
        return values
    for task in TASKS:
        count = 32
        values[f"reward/{task}"] = Mean(float(rng.binomial(count, reward_at(run, step, task))), count)
    values["reward"] = sum((one for one in values.values() if isinstance(one, Mean) and one.count == 32), Mean())
    tokens = 9000 + 400 * rng.standard_normal()
    values |= {"tokens": tokens, "entropy": Mean(entropy_at(run, step) * tokens, tokens)}
    if run.mode != "none":
        values |= draft_metrics(run, step, rng)
    values |= time_metrics(run, rng) | learner_metrics(run, rng, tokens)
    return values | {"version": step, "tokens_per_second": tokens / float(values["time/step"])}  # type: ignore[arg-type]


def reward_at(run: SyntheticRun, step: int, task: str) -> float:
    start = {"math": 0.5, "code": 0.35, "agent": 0.15}[task]
    return start + 0.3 * (1 - math.exp(-2.5 * step / run.steps))


def draft_metrics(run: SyntheticRun, step: int, rng: np.random.Generator) -> dict[str, MetricValue]:
    length = length_at(run, step, rng.standard_normal())
    rounds = 3000
    rate = fitted_rate(length)
    conditional = [rate + 0.02, rate, rate - 0.02]
    survival = np.cumprod(conditional)
    found: dict[str, MetricValue] = {
        "mtp/accept_length": Mean(rounds * length, rounds),
        "mtp/acceptance_rate": Mean(rounds * (length - 1), 3 * rounds),
    }
    reached = [1.0, *survival[:-1]]
    for depth in range(3):
        found[f"mtp/conditional@{depth + 1}"] = Mean(
            conditional[depth] * reached[depth] * rounds, reached[depth] * rounds
        )
        found[f"mtp/survival@{depth + 1}"] = Mean(survival[depth] * rounds, rounds)
        found[f"mtp/overlap@{depth + 1}"] = Mean((conditional[depth] + 0.01) * rounds, rounds)
    return found


def fitted_rate(length: float) -> float:
    """The i.i.d. acceptance whose three drafts give this accept length."""
    rates = np.linspace(0, 1, 2001)
    return float(rates[np.argmin(abs(1 + rates + rates**2 + rates**3 - length))])


def time_metrics(run: SyntheticRun, rng: np.random.Generator) -> dict[str, MetricValue]:
    step = run.step_seconds * (1 + 0.05 * rng.standard_normal())
    return {
        "time/step": step,
        "time/generation": run.generation_seconds * (1 + 0.05 * rng.standard_normal()),
        "time/exposed_generation": max(0.1, step - 2.3),
        "time/scoring": 0.4,
        "time/training": 2.0,
        "time/publication": 0.12,
        "generation_share": max(0.1, step - 2.3) / step,
    }


def learner_metrics(run: SyntheticRun, rng: np.random.Generator, tokens: float) -> dict[str, MetricValue]:
    shares = rng.dirichlet(np.array([3.0, 5.0, 1.0][: run.max_lag + 1]))
    lags = {f"lag/count@{lag}": float(round(share * tokens)) for lag, share in enumerate(shares)}
    total = sum(lag * share for lag, share in enumerate(shares)) * tokens
    return {
        "lag": Mean(total, tokens),
        "lag/max": float(run.max_lag),
        **lags,
        "importance/ratio": Mean(1.001 * tokens, tokens),
        "importance/truncated": Mean(0.002 * tokens, tokens),
        "importance/max": 3.4,
        "mismatch_kl": Mean(2e-6 * tokens, tokens),
        "grpo/loss": Mean(-0.01 * tokens, tokens),
        "grpo/clipped": Mean(0.01 * tokens, tokens),
        "grad_norm": Mean(0.4, 1),
        "lr": 2e-4,
        "groups/used": 9,
        "groups/zero_variance": 3,
    }


def acceptance_in(run: SyntheticRun, entropy: float) -> float:
    """Conditional acceptance of a token at this entropy: a line over bins, too."""
    return min(1.0, max(0.02, fitted_rate(run.length) + run.slope / 4 * (entropy - 0.4)))


def bins_at(run: SyntheticRun, step: int, rng: np.random.Generator) -> dict[str, Any]:
    centres = [0.02, 0.07, 0.15, 0.25, 0.37, 0.52, 0.7, 0.9, 1.2, 1.7, 2.3]
    counts = [float(rng.poisson(400 * math.exp(-1.2 * centre))) for centre in centres]
    chances = [acceptance_in(run, centre) for centre in centres]
    return {
        "step": step,
        "edges": [*EDGES[:-1], "inf"],
        "count": counts,
        "entropy_sum": [count * centre for count, centre in zip(counts, centres, strict=True)],
        "overlap_sum": [count * min(1.0, chance + 0.01) for count, chance in zip(counts, chances, strict=True)],
        "accepted": [float(rng.binomial(int(count), chance)) for count, chance in zip(counts, chances, strict=True)],
        "drafted": counts,
    }


def transcript(run: SyntheticRun, step: int, rng: np.random.Generator) -> dict[str, Any]:
    task = TASKS[step % 3]
    turns = [{"given": f"user\nAda has 12 pears.{NASTY}", "tokens": tokens_of(run, step, rng, 60)}]
    if task == "agent":
        turns.append({"given": 'tool\n{"stock": 4}\n', "tokens": tokens_of(run, step, rng, 25)})
    reward = float(rng.random() < reward_at(run, step, task))
    reason = "solved" if reward else "wrong answer"
    return {
        "step": step,
        "task": task,
        "problem": f"{task}/train/{step}",
        "reward": reward,
        "reason": reason,
        "turns": turns,
    }


def tokens_of(run: SyntheticRun, step: int, rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = []
    rate = fitted_rate(run.length)
    while len(tokens) < count:
        if run.mode == "none":
            tokens.append(token("sampled", step, rng))
            continue
        accepted = 0
        while accepted < 3 and rng.random() < rate:
            tokens.append(token("drafted", step, rng))
            accepted += 1
        tokens.append(token("bonus" if accepted == 3 else "corrected", step, rng))
    if step == 1:
        tokens[3]["text"] = NASTY
    return tokens[:count]


def token(source: str, step: int, rng: np.random.Generator) -> dict[str, Any]:
    entropy = float(rng.gamma(1.0, 0.6))
    logprob = -float(rng.gamma(1.0, 0.3 + entropy / 2))
    has_draft = source in ("drafted", "corrected")
    return {
        "text": str(rng.choice(TEXTS)),
        "id": int(rng.integers(500)),
        "source": source,
        "logprob": logprob,
        "entropy": entropy,
        "version": max(0, step - 1 - int(rng.integers(2))),
        "draft_logprob": (logprob - 0.05 if source == "drafted" else "-Infinity") if has_draft else None,
        "overlap": max(0.0, 1 - 0.2 * entropy) if has_draft else None,
    }


def write_head_run(
    parent: Path, name: str = "head", seconds: float = 60.0, output: str | Path = "runs/head/policy"
) -> Path:
    """A `train-mtp` directory, by default of the head that the runs above use; it took so many seconds."""
    path = parent / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"output": str(output), "steps": 100, "unroll": {"depths": 5}}))
    write_provenance(path, "bebop train-mtp configs/train-mtp-tiny.yaml")
    rows = []
    for step in range(5, 101, 5):
        accepted = 2.3 * (1 - math.exp(-step / 30))
        rows.append(
            {
                "step": step,
                "time": START + seconds * step / 100,
                "mtp/loss": {"total": 100.0 - step / 2, "count": 100},
                "mtp/expected_accepted": {"total": 500 * accepted, "count": 500},
                "mtp/overlap@1": {"total": 90.0, "count": 100},
            }
        )
    write_lines(path / "metrics.jsonl", rows)
    return path


def write_evaluation(parent: Path, name: str, rates: dict[str, float]) -> Path:
    """A file of `bebop eval-mtp --json`: the same i.i.d. acceptance per rule on every task, a little apart."""
    tasks = []
    for place, task in enumerate(TASKS):
        figures: dict[str, Any] = {
            "target_entropy": figure(0.5 + 0.2 * place),
            "draft_entropy@1": figure(0.6 + 0.2 * place),
        }
        for rule, base in rates.items():
            rate = base - 0.03 * place
            length = 1 + rate + rate**2 + rate**3
            figures[f"{rule}/acceptance_rate"] = figure((length - 1) / 3)
            figures[f"{rule}/accept_length"] = figure(length)
            figures[f"{rule}/estimated_round_length"] = figure(length + 0.01)
        figures["overlap@1"] = figure(0.9 - 0.03 * place)
        figures["prefers_rejection@1"] = figure(0.7)
        tasks.append({"task": task, "num_episodes": 100, "figures": figures, "draft_temperatures": None})
    path = parent / f"{name}.json"
    about = {"policy": name, "temperature": 1.0, "k": 3, "split": "heldout", "seed": 0}
    path.write_text(json.dumps({**about, "tasks": tasks}))
    return path


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value * 0.97, "high": value * 1.03, "total": value * 1000, "count": 1000}


def write_provenance(path: Path, command: str) -> None:
    moment = datetime.fromtimestamp(START, UTC).isoformat(timespec="seconds")
    one = Provenance(
        command=command,
        revision="0123456789abcdef",
        versions={"bebop": "0.1.0", "torch": "2.13.0"},
        seed=0,
        hardware="2 cores of a processor, 24 GiB",
        time=moment,
    )
    (path / "provenance.json").write_text(json.dumps([asdict(one)]))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_everything(parent: Path) -> list[Path]:
    """Three arms, a head's training, two evaluations."""
    arms = [write_rl_run(parent, run) for run in ARMS]
    evaluations = [
        write_evaluation(parent, "ce", {"target_only": 0.5, "rejection": 0.8, "block": 0.81}),
        write_evaluation(parent, "e2e_tv", {"target_only": 0.5, "rejection": 0.86, "block": 0.87}),
    ]
    return [*arms, write_head_run(parent), *evaluations]
