"""`bebop train-mtp CONFIG`: train the MTP head on the policy's own rollouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch

from bebop.cli.counting import ticker
from bebop.cli.devices import chosen_device, chosen_dtype
from bebop.cli.options import ConfigArgument, DryRunOption, OverridesArgument, resolve
from bebop.cli.output import check_output
from bebop.cli.progress import progress
from bebop.cli.resuming import open_run
from bebop.errors import UserError
from bebop.models.policy import Policy, load_policy, save_policy
from bebop.runs import RunDirectory
from bebop.tasks.chat import chat_of
from bebop.tasks.registry import load_tasks
from bebop.training.allocator import prepare_memory_for_training
from bebop.training.collect import collected
from bebop.training.draft_vocabulary import WrittenTokens
from bebop.training.hidden import HiddenSource, in_memory, on_disk, recomputed
from bebop.training.mtp import MTPReport, TrainingData, train_mtp
from bebop.training.mtp_config import TrainMTP
from bebop.training.optimiser import STEP_SIZES
from bebop.training.parallel import World, check_share, training_world
from bebop.training.plausibility import check_plausible
from bebop.training.sample_files import read_samples
from bebop.training.samples import Sample, by_length, epochs, usable

MAY_DIFFER = (
    *("steps", "run", "output", "draft_vocabulary", "checkpoint_every", "log_every", "dashboards"),
    *("data.micro_batch_tokens", "data.hidden", "unroll.recompute"),
    *(f"optimiser.{one}" for one in STEP_SIZES),
)
"""Settings with which a run can go on although it was started with others."""


def command(config: ConfigArgument, overrides: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    """Train a policy's MTP head so that rejection sampling accepts its drafts; the policy itself stays as it is.

    The policy plays the tasks once to make the data, unless `data.file` is given. Interrupted, the same command goes on
    from the last checkpoint of its run directory. On several devices: `torchrun --nproc-per-node N -m bebop train-mtp`.

    Example: bebop train-mtp configs/train-mtp-tiny.yaml loss.objective=kl steps=300
    """
    settings = resolve(TrainMTP, config, overrides, dry_run=dry_run)
    device = chosen_device(settings.device)
    prepare_memory_for_training()
    with training_world(device.type) as world:
        train(settings, world, world.device(device))


def train(settings: TrainMTP, world: World, device: torch.device) -> None:
    """One process's part of the command."""
    check_output(settings.output)
    check_share(world, settings.data.per_step, settings.optimiser.name)
    policy = open_policy(settings, device)
    given = given_samples(settings, policy)
    with opened_run(settings, world) as run:
        trained, written = train_in(run, settings, policy, given, world)
        if world.is_main:
            few = written.draft_vocabulary(policy.config.vocab_size) if settings.draft_vocabulary else None
            save_policy(replace(trained.with_head_trained_here(), draft_vocabulary=few), settings.output)
            print(f"the policy with the trained head is in {settings.output}")
            if settings.draft_vocabulary:
                print(f"the head may draft {written.describe(policy.config.vocab_size)}")


@contextmanager
def opened_run(settings: TrainMTP, world: World) -> Iterator[RunDirectory]:
    """The run directory, which the main process makes and holds."""
    with ExitStack() as held:
        opening = open_run(settings.run, settings, settings.data.seed, MAY_DIFFER)
        yield world.first(lambda: held.enter_context(opening), RunDirectory(settings.run))


def train_in(
    run: RunDirectory, settings: TrainMTP, policy: Policy, given: list[Sample] | None, world: World
) -> tuple[Policy, WrittenTokens]:
    """The policy with its trained head, and the tokens found in the data."""
    samples = given or world.first(lambda: played_samples(settings, policy, run))
    hiddens = open_hiddens(settings, policy, samples, run, world)
    written = WrittenTokens.of(one.transcript for one in samples)
    source = epochs(samples, settings.data.per_step, settings.data.seed)
    data = TrainingData(samples=source, hiddens=hiddens, written=written)
    with progress("train-mtp", settings.steps) if world.is_main else nullcontext() as show:
        trained = train_mtp(
            settings,
            policy,
            data,
            run,
            lambda report: show(report.step, figures(report)) if show else None,
            world,
        )
    return trained, written


def open_policy(settings: TrainMTP, device: torch.device) -> Policy:
    dtype = chosen_dtype(settings.dtype, device)
    policy = load_policy(settings.policy, dtype=dtype, device=device, head=settings.head)
    if policy.head is None:
        raise UserError(f"the policy {settings.policy} has no MTP head; set head=fresh to start a new one")
    return policy


def given_samples(settings: TrainMTP, policy: Policy) -> list[Sample] | None:
    """The rows of ``data.file``; None where there is none, and then the tasks to be played are there."""
    data = settings.data
    if data.file is None:
        load_tasks(data.collect.tasks, data.collect.seed)
        return None
    origin = str(data.file)
    rows = read_samples(data.file, lambda: chat_of(policy.tokenizer, data.collect.thinking))
    samples = usable(rows, policy.config.vocab_size, data.max_tokens, origin)
    check_plausible(policy, samples, origin)
    return samples


def played_samples(settings: TrainMTP, policy: Policy, run: RunDirectory) -> list[Sample]:
    """The policy's own rollouts."""
    data = settings.data
    with progress("rollouts", data.collect.num_episodes) as show:
        found = collected(policy, data.collect, data.temperature, run.path / "rollouts.jsonl", show)
    return usable(found, policy.config.vocab_size, data.max_tokens, "the collection")


def open_hiddens(
    settings: TrainMTP, policy: Policy, samples: list[Sample], run: RunDirectory, world: World
) -> HiddenSource:
    data = settings.data
    if data.hidden == "recompute":
        return recomputed(policy)
    batches = by_length(samples, data.micro_batch_tokens)
    with progress("hidden states", len(batches)) if world.is_main else nullcontext() as bar:
        tick = ticker(bar, "batches") if bar else lambda: None
        if data.hidden == "memory":
            return in_memory(policy, batches, tick)
        return world.first(lambda: on_disk(policy, batches, run.path / "hidden", tick))


def figures(report: MTPReport) -> str:
    speed = report.num_tokens / report.seconds
    overlaps = " ".join(f"{one.value:.3f}" for one in report.overlaps)
    stage = "" if report.is_warm else "warm-up  "
    length = 1 + report.accepted.value
    return f"{stage}loss {report.loss.value:.4f}  overlap {overlaps}  length {length:.2f}  {speed:.0f} tokens/s"
