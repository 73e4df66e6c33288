"""The policy's own rollouts as training data: sampled once per run, kept in its directory.

Rows are written as episodes end, so that an interrupted collection goes on where it stopped; an episode's draws depend
on its plan alone, so the data are the same however often it was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bebop.core.sampling import Sampling
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.files import atomic_write
from bebop.models.policy import Policy
from bebop.tasks.base import Split
from bebop.tasks.chat import Transcript, chat_of
from bebop.tasks.episodes import EpisodePlan, EpisodeSettings, Rollout, run_episodes
from bebop.tasks.evaluation import plans
from bebop.tasks.registry import load_tasks
from bebop.training.mtp_config import CollectConfig
from bebop.training.samples import Sample

Show = Callable[[int, str], None]
"""(episodes done, a short line of figures) -> None"""


def collected(
    policy: Policy,
    config: CollectConfig,
    temperature: float,
    path: Path,
    show: Show,
    split: Split = Split.TRAIN,
) -> list[Sample]:
    """The samples in ``path``, played first where the file is not there yet."""
    if not path.exists():
        wanted = episode_plans(config, split)
        part = path.with_suffix(".part")
        play(policy, config, temperature, wanted, part, show)
        order = {plan_id(plan): place for place, plan in enumerate(wanted)}
        rows = sorted(whole_rows(part), key=lambda row: order[row["id"]])
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
        part.unlink()
    return [
        Sample(id=row["id"], transcript=Transcript(row["tokens"], row["is_model"]))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def episode_plans(config: CollectConfig, split: Split = Split.TRAIN) -> list[EpisodePlan]:
    tasks = list(load_tasks(config.tasks, config.seed).values())
    return list(islice(plans(tasks, split, range(config.num_episodes)), config.num_episodes))


def play(
    policy: Policy,
    config: CollectConfig,
    temperature: float,
    wanted: Sequence[EpisodePlan],
    part: Path,
    show: Show,
) -> None:
    """Append a row to ``part`` for every wanted episode that has none yet."""
    chat = chat_of(policy.tokenizer, config.thinking)
    done = {row["id"] for row in whole_rows(part)} if part.exists() else set()
    left = [plan for plan in wanted if plan_id(plan) not in done]
    # The target alone: a head that is yet to be trained would only slow it down.
    engine = EmbeddedEngine(policy, EmbeddedOptions(max_rows=config.rows, num_draft_tokens=0))
    settings = EpisodeSettings(sampling=Sampling(temperature=temperature), max_turn_tokens=config.max_turn_tokens)
    reward = num_tokens = 0.0
    with part.open("a", encoding="utf-8") as file:
        for number, rollout in enumerate(run_episodes(engine, chat, left, settings), start=1):
            file.write(json.dumps(as_row(rollout)) + "\n")
            file.flush()
            reward += rollout.outcome.reward
            num_tokens += rollout.num_model_tokens
            show(len(done) + number, f"mean reward {reward / number:.2f}  {num_tokens:.0f} tokens")
    engine.close()


def plan_id(plan: EpisodePlan) -> str:
    return f"{plan.problem.id}/{plan.seed}"


def as_row(rollout: Rollout) -> dict[str, Any]:
    return {
        "id": plan_id(rollout.plan),
        "task": rollout.plan.task.name,
        "reward": rollout.outcome.reward,
        "reason": rollout.outcome.reason,
        "tokens": list(rollout.tokens),
        "is_model": list(rollout.is_model),
    }


def whole_rows(part: Path) -> list[dict[str, Any]]:
    """The rows that were written to their end; what a kill left of a last one is cut off the file."""
    text = part.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(part, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
