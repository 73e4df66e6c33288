"""Running a job isolated, or not at all unless the config accepts the risk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bebop.tasks.sandbox.config import SandboxConfig
from bebop.tasks.sandbox.launch import CannotIsolate, SandboxResult, launch
from bebop.tasks.sandbox.status import SandboxStatus, probe


def run_python(source: str, *, config: SandboxConfig, stdin: str = "") -> SandboxResult:
    """Run ``source`` as a program. ``CannotIsolate`` on a machine that cannot, unless the config allows it."""
    return run_job({"source": source, "function": None, "stdin": stdin}, config=config)


def run_job(job: Mapping[str, Any], *, config: SandboxConfig, secrets: Sequence[Any] = ()) -> SandboxResult:
    """Run one job of ``jail.watch.run``; ``secrets`` are messages that the candidate's process never holds."""
    return launch(job, config=config, secrets=secrets, isolated=must_isolate(probe(), config))


def must_isolate(status: SandboxStatus, config: SandboxConfig) -> bool:
    """Whether to isolate: wherever the machine can. ``CannotIsolate`` where it cannot, unless the config allows it."""
    if status.isolated or config.allow_unisolated:
        return status.isolated
    raise CannotIsolate(f"this machine cannot isolate model-written code: {status.missing}")
