"""`bebop train-rl CONFIG`: reinforcement learning with drafted rollouts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console

from bebop.cli.options import ConfigArgument, DryRunOption, OverridesArgument, resolve
from bebop.cli.output import check_output
from bebop.cli.progress import progress
from bebop.cli.resuming import open_run
from bebop.errors import UserError
from bebop.metrics import Mean
from bebop.models.policy import Policy, save_policy
from bebop.rl.config import TrainRL
from bebop.rl.fleet import Interrupted
from bebop.rl.loop import Observer, train_rl
from bebop.runs import RunDirectory
from bebop.training.allocator import prepare_memory_for_training
from bebop.training.optimiser import STEP_SIZES

MAY_DIFFER = (
    *("steps", "run", "output", "resume", "evaluation", "checkpoint_every", "transcripts_per_step", "dashboards"),
    *(f"learner.optimiser.{one}" for one in STEP_SIZES),
    *(f"mtp.online.optimiser.{one}" for one in STEP_SIZES),
    *("learner.micro_batch_tokens", "threads", "mtp.mode", "mtp.rule", "mtp.k", "mtp.draft_vocabulary"),
    *(f"rollout.{one}" for one in ("workers", "rows", "threads", "scoring_threads", "stall_seconds", "max_restarts")),
)
"""Settings with which a run can go on although it was started with others."""


def command(config: ConfigArgument, overrides: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    """Train a policy by GRPO; its rollouts are drafted by its MTP head and verified exactly.

    Interrupted, the same command goes on from the last checkpoint of its run directory.

    Example: bebop train-rl configs/train-rl-tiny.yaml async.max_lag=0 mtp.mode=none
    """
    settings = resolve(TrainRL, config, overrides, dry_run=dry_run)
    check_output(settings.output)
    prepare_memory_for_training()
    if settings.resume == "never" and RunDirectory(settings.run).holds_something:
        raise UserError(f"{settings.run} is there already; name another run=DIRECTORY or set resume=auto")
    with open_run(settings.run, settings, settings.seed, MAY_DIFFER) as run:
        policy = watched(settings, run)
        save_policy(policy, settings.output)
    print(f"the trained policy is in {settings.output}, the run in {settings.run}")


def watched(settings: TrainRL, run: RunDirectory) -> Policy:
    """The trained policy; its progress is shown, and Ctrl-C stops at a checkpoint."""
    with progress("train-rl", settings.steps) as show, stoppable() as called_off:
        observer = Observer(show=lambda step, metrics: show(step, figures(metrics)), is_called_off=called_off.is_set)
        try:
            return train_rl(settings, run, observer)
        except Interrupted as stop:
            print(f"stopped at a checkpoint; the same command goes on from there ({settings.run})")
            raise KeyboardInterrupt from stop


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; a second one ends the command at once."""
    called_off = threading.Event()

    def call_off(number: int, frame: object) -> None:
        if called_off.is_set():
            raise KeyboardInterrupt
        called_off.set()
        Console(stderr=True).print("stopping at the next safe point; once more stops at once", highlight=False)

    before = {number: signal.signal(number, call_off) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield called_off
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def figures(metrics: Mapping[str, Mean | float]) -> str:
    """The line that progress shows."""
    parts = [f"reward {number(metrics['reward']):.3f}", f"entropy {number(metrics['entropy']):.2f}"]
    if "mtp/accept_length" in metrics:
        parts.append(f"length {number(metrics['mtp/accept_length']):.2f}")
    if "heldout_reward" in metrics:
        parts.append(f"held out {number(metrics['heldout_reward']):.3f}")
    parts.append(f"{number(metrics['time/step']):.1f} s/step  {number(metrics['tokens_per_second']):.0f} tokens/s")
    return "  ".join(parts)


def number(value: Mean | float) -> float:
    return value.value if isinstance(value, Mean) else value
