"""The recipes by the name of their framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from bebop.errors import UserError
from bebop.recipes import engines, trainers
from bebop.recipes.head import ServedHead, served_head
from bebop.recipes.record import Recipe

RECIPES: Mapping[str, Callable[[ServedHead], Recipe]] = MappingProxyType(
    {
        "vllm": engines.vllm,
        "sglang": engines.sglang,
        "verl": trainers.verl,
        "skyrl": trainers.skyrl,
        "slime": trainers.slime,
        "nemo-rl": trainers.nemo_rl,
        "trl": trainers.trl,
        "prime-rl": trainers.prime_rl,
    }
)


def make_recipe(framework: str, policy: str | Path, num_draft_tokens: int = 3) -> Recipe:
    """How ``framework`` rolls out with the head of ``policy``. UserError where there is no such recipe or head."""
    if framework not in RECIPES:
        raise UserError(f"there is no recipe for {framework!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[framework](served_head(policy, num_draft_tokens))
