"""Episodes of several turns go on from the cache of the turn before, and are the same for it."""

import torch

from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.models.policy import load_policy
from bebop.tasks.base import Split
from bebop.tasks.chat import chat_of
from bebop.tasks.episodes import EpisodePlan, EpisodeSettings, Rollout, run_episodes
from bebop.tasks.registry import load_task


def play(engine: EmbeddedEngine, plans: list[EpisodePlan]) -> dict[int, Rollout]:
    chat = chat_of(engine.policy.tokenizer)
    settings = EpisodeSettings(max_turn_tokens=60)
    return {rollout.plan.seed: rollout for rollout in run_episodes(engine, chat, plans, settings)}


def test_tokens_of_agent_episodes_do_not_depend_on_kept_caches() -> None:
    policy = load_policy("tiny", dtype=torch.float32)
    task = load_task("agent")
    plans = [EpisodePlan(task=task, problem=task.problem(Split.TRAIN, i), seed=i) for i in range(6)]
    kept = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3, max_rows=4))
    nothing_kept = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3, max_rows=4, kept_memory=0))
    done, wanted = play(kept, plans), play(nothing_kept, plans)
    assert max(len(rollout.turns) for rollout in done.values()) > 1
    assert {seed: one.tokens for seed, one in done.items()} == {seed: one.tokens for seed, one in wanted.items()}
    assert kept.report().reused_tokens > 100 > nothing_kept.report().reused_tokens == 0


def test_single_turns_are_not_kept() -> None:
    policy = load_policy("tiny", dtype=torch.float32)
    task = load_task("math")
    engine = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3))
    play(engine, [EpisodePlan(task=task, problem=task.problem(Split.TRAIN, 0), seed=0)])
    with_prompt_alone = engine.report().kept_bytes
    engine.load_weights(1, {})
    assert engine.report().kept_bytes == 0 < with_prompt_alone
