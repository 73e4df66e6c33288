"""What all arms of the comparison of objectives share: policy, rollouts, hidden states, and where results are kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bebop.bench.objective_config import ObjectiveBench
from bebop.errors import UserError
from bebop.models.devices import chosen_device, chosen_dtype
from bebop.models.policy import MTPHead, Policy, load_policy
from bebop.runs import RunDirectory
from bebop.tasks.base import Split
from bebop.training.collect import collected
from bebop.training.hidden import HiddenSource, in_memory
from bebop.training.mtp_config import CollectConfig, DataConfig
from bebop.training.samples import Sample, by_length, usable


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """Everything but the arms."""

    bench: ObjectiveBench
    run: RunDirectory
    policy: Policy
    head: MTPHead
    """The policy's; every arm begins by setting it."""
    train: list[Sample]
    tuning: list[Sample]
    heldout: list[Sample]
    hiddens: HiddenSource
    """Of all three."""


def open_lab(bench: ObjectiveBench, command: Sequence[str]) -> Lab:
    """Play what was not played yet, compute the hidden states. UserError where ``out`` holds another comparison."""
    if bench.rollouts is not None and not bench.rollouts.exists():
        raise UserError(f"there is no file {bench.rollouts}; name the rollouts.jsonl of a `bebop train-mtp` run")
    run = open_comparison(bench, command)
    device = chosen_device(bench.device)
    policy = load_policy(bench.policy, dtype=chosen_dtype(bench.dtype, device), device=device, head="fresh")
    assert policy.head is not None
    for_heldout = bench.collect.model_copy(update={"num_episodes": bench.num_heldout})
    train_path, heldout_path = bench.rollouts or run.path / "rollouts.jsonl", run.path / "heldout.jsonl"
    train = rollouts(policy, bench, bench.collect, train_path, Split.TRAIN)
    heldout = rollouts(policy, bench, for_heldout, heldout_path, Split.HELDOUT)
    if len(train) <= bench.num_tuning:
        raise UserError(
            f"{train_path} has {len(train)} rollouts, which leaves none to train on beside num_tuning="
            f"{bench.num_tuning}; lower it or collect more"
        )
    say(f"hidden states of {len(train) + len(heldout)} rollouts")
    groups = by_length([*train, *heldout], bench.micro_batch_tokens)
    return Lab(
        bench=bench,
        run=run,
        policy=policy,
        head=policy.head,
        train=train[bench.num_tuning :],
        tuning=train[: bench.num_tuning],
        heldout=heldout,
        hiddens=in_memory(policy, groups, lambda: None),
    )


def open_comparison(bench: ObjectiveBench, command: Sequence[str]) -> RunDirectory:
    """A new directory, or one whose settings differ in ``arms`` alone."""
    if not bench.out.exists():
        return RunDirectory.create(bench.out, bench, command)
    run = RunDirectory.open(bench.out)
    if run.config(ObjectiveBench).model_copy(update={"arms": bench.arms}) != bench:
        raise UserError(f"{bench.out} holds a comparison with other settings; name another out=DIRECTORY or delete it")
    run.record_resumption(command)
    return run


def rollouts(policy: Policy, bench: ObjectiveBench, config: CollectConfig, path: Path, split: Split) -> list[Sample]:
    def show(done: int, figures: str) -> None:
        if done % 100 == 0:
            say(f"  {done} of {config.num_episodes}  {figures}")

    say(f"{split} rollouts: {path}")
    found = collected(policy, config, bench.temperature, path, show, split)
    return usable(found, policy.config.vocab_size, DataConfig().max_tokens, str(path))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
