"""What can be audited on policies that the audit writes: how an engine is opened on a checkpoint directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from bebop.audit.policies import Format
from bebop.engines.base import Engine
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.vllm import VllmEngine, VllmOptions
from bebop.models.policy import load_policy
from bebop.models.quiet import quiet_transformers

_MAX_ROWS = 2048
_VLLM_ROWS = 256


class Subject(Protocol):
    """An engine under audit."""

    @property
    def name(self) -> str: ...

    @property
    def draft_lengths(self) -> tuple[int | None, ...]:
        """Draft tokens a request may ask for; None takes the engine's."""
        ...

    @property
    def formats(self) -> tuple[Format, ...]:
        """Checkpoint formats it loads, the usual one first."""
        ...

    def open(self, directory: Path, num_draft_tokens: int) -> Engine:
        """The engine on the policy in ``directory``; 0 draft tokens = without speculation."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedSubject:
    """The embedded engine with one of its verification rules."""

    rule: str = "rejection"
    draft_lengths: tuple[int | None, ...] = (1, 2, 3, 5)
    formats: tuple[Format, ...] = tuple(Format)

    @property
    def name(self) -> str:
        return f"embedded, rule {self.rule}"

    def open(self, directory: Path, num_draft_tokens: int) -> Engine:
        with quiet_transformers():
            policy = load_policy(directory, dtype=torch.float32)
        options = EmbeddedOptions(rule=self.rule, num_draft_tokens=num_draft_tokens, max_rows=_MAX_ROWS)
        return EmbeddedEngine(policy, options)


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmSubject:
    """vLLM in this process. ``as_released`` leaves its CPU build's sampling defect (vllm#55005) in place."""

    rule: str = "rejection"
    as_released: bool = False
    draft_lengths: tuple[int | None, ...] = (None,)
    formats: tuple[Format, ...] = (Format.MIMO, Format.EAGLE)

    @property
    def name(self) -> str:
        return f"vllm, rule {self.rule}" + (", as released" if self.as_released else "")

    def open(self, directory: Path, num_draft_tokens: int) -> Engine:
        options = VllmOptions(
            rule=self.rule,
            num_draft_tokens=num_draft_tokens,
            max_rows=_VLLM_ROWS,
            record_distribution=True,
            correct_cpu_sampling=not self.as_released,
        )
        with quiet_transformers():
            return VllmEngine(directory, options)
