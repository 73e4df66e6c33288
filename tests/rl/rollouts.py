"""Groups of rollouts for the learner: sampled by a small policy's own engine, with rewards that the test chooses."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from bebop.core.sampling import Sampling
from bebop.engines.base import Completion, Request
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.models.policy import Policy, new_policy
from bebop.rl.records import Group
from bebop.tasks.base import Family, Message, Outcome, Problem, SingleTurn, Split
from bebop.tasks.episodes import EpisodePlan, Rollout, RolloutTurn

VOCAB = 23
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


class Nothing:
    """A task that is only named."""

    name = "nothing"
    family: Family = "math"

    def problem(self, split: Split, index: int) -> Problem:
        message = Message(role="user", content=str(index))
        return Problem(task=self.name, split=split, index=index, messages=(message,), facts={})

    def start(self, problem: Problem) -> SingleTurn:
        return SingleTurn(lambda _: Outcome(reward=0.0, reason="nothing asked"))

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        return problem.messages


def small_policy(*, tied: bool = False, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    if tied:
        config = Qwen3_5TextConfig(**SIZES, head_dim=16, layer_types=["full_attention"] * 2, tie_word_embeddings=True)
        backbone = Qwen3_5ForCausalLM(config)
    else:
        backbone = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.12)
    return new_policy(backbone.eval(), seed=seed)


def sampled_groups(
    policy: Policy,
    rewards: Sequence[Sequence[float]],
    *,
    sampling: Sampling | None = None,
    num_draft_tokens: int = 0,
    version: int = 0,
) -> list[Group]:
    """One group per row of rewards; prompts and answers of unequal length."""
    engine = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=num_draft_tokens), version=version)
    groups = []
    for number, of_group in enumerate(rewards):
        requests = [
            Request(
                id=str(place),
                prompt_tokens=tuple((number * 3 + step) % VOCAB for step in range(3 + number % 3)),
                max_tokens=4 + (place * 5 + number) % 7,
                sampling=sampling or Sampling(),
                seed=100 * number + place,
            )
            for place in range(len(of_group))
        ]
        completions = engine.generate(requests)
        groups.append(
            Group(
                number=number,
                rollouts=tuple(
                    rollout(number, request.prompt_tokens, [completion], reward)
                    for request, completion, reward in zip(requests, completions, of_group, strict=True)
                ),
            )
        )
    return groups


def rollout(number: int, prompt: tuple[int, ...], completions: Sequence[Completion], reward: float) -> Rollout:
    """One turn per completion; later turns are given one token."""
    task = Nothing()
    givens = [prompt, *[(1,)] * (len(completions) - 1)]
    return Rollout(
        plan=EpisodePlan(task=task, problem=task.problem(Split.TRAIN, number), seed=number),
        turns=tuple(
            RolloutTurn(given_tokens=given, completion=completion)
            for given, completion in zip(givens, completions, strict=True)
        ),
        outcome=Outcome(reward=reward, reason="chosen"),
    )


def changed(rollouts: Rollout, **changes: object) -> Rollout:
    """The rollout with fields of its only completion replaced."""
    (turn,) = rollouts.turns
    completion = dataclasses.replace(turn.completion, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(rollouts, turns=(dataclasses.replace(turn, completion=completion),))
