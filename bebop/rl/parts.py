"""The parts of a run, put together and taken apart again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from bebop.errors import UserError
from bebop.models.devices import chosen_device, chosen_dtype
from bebop.models.policy import Policy, load_policy
from bebop.rl.config import TrainRL
from bebop.rl.contract import AcceptLengthWatch, HeadContract
from bebop.rl.fleet import Fleet, FleetOptions
from bebop.rl.gate import LagGate
from bebop.rl.intake import Intake, IntakeOptions
from bebop.rl.learner import Learner
from bebop.rl.messages import Start, Weights
from bebop.rl.placement import Inbox, WorkerProcess
from bebop.rl.publication import WeightStore
from bebop.runs import RunDirectory
from bebop.tasks.chat import chat_of
from bebop.tasks.registry import load_tasks
from bebop.training.checkpoint import load_latest, saved_position


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the loop works with."""

    learner: Learner
    fleet: Fleet
    intake: Intake
    contract: HeadContract
    watch: AcceptLengthWatch
    store: WeightStore
    tokenizer: PreTrainedTokenizerBase


@contextmanager
def assembled(config: TrainRL, run: RunDirectory) -> Iterator[Parts]:
    """Everything in its place, at the state of the run's last checkpoint."""
    with ExitStack() as stack:
        torch.set_num_threads(config.threads)
        learner = open_learner(config, run)
        policy = learner.policy
        assert policy.tokenizer is not None
        store = WeightStore(run.path, sum(one.numel() * one.element_size() for one in learner.tensors().values()))
        stack.callback(store.close)
        contract = HeadContract(policy, config.mtp.mode, worker_dtype(config))
        contract.expect(learner.tensors())
        fleet = Fleet(
            partial(launch, config, run),
            FleetOptions(
                num_workers=config.rollout.workers,
                stall_seconds=config.rollout.stall_seconds,
                max_restarts=config.rollout.max_restarts,
            ),
            load_tasks(config.tasks, config.seed),
            lambda name, loaded: contract.check(name, loaded.version, loaded.held),
        )
        stack.callback(fleet.close)
        fleet.start(store.write(learner.version, learner.tensors()) if learner.version else None)
        yield Parts(
            learner=learner,
            fleet=fleet,
            intake=Intake(open_gate(config, run, learner.version), fleet, IntakeOptions.of(config)),
            contract=contract,
            watch=AcceptLengthWatch(),
            store=store,
            tokenizer=policy.tokenizer,
        )


def open_learner(config: TrainRL, run: RunDirectory) -> Learner:
    """The learner at the state of the run's last checkpoint."""
    learner = Learner(
        open_policy(config),
        config.learner,
        num_updates=config.steps,
        sampling=config.rollout.sampling,
        head=config.mtp.online if config.mtp.mode == "online" else None,
    )
    learner.version = load_latest(run.checkpoints_path, learner.trained)
    return learner


def open_gate(config: TrainRL, run: RunDirectory, version: int) -> LagGate:
    """The gate where the run's last checkpoint stands."""
    return LagGate(
        max_lag=config.max_lag,
        groups_per_step=config.groups_per_step,
        num_steps=config.steps,
        version=version,
        position=saved_position(run.checkpoints_path),
        max_replaced=config.max_replaced,
    )


def open_policy(config: TrainRL) -> Policy:
    device = chosen_device(config.device)
    policy = load_policy(config.policy, dtype=chosen_dtype(config.dtype, device), device=device)
    chat_of(policy.tokenizer, config.rollout.thinking)
    if policy.head is None and config.mtp.mode != "none":
        raise UserError(f"the policy {config.policy} has no MTP head; train one with train-mtp, or set mtp.mode=none")
    return policy


def worker_dtype(config: TrainRL) -> torch.dtype:
    return chosen_dtype(config.rollout.dtype, chosen_device(config.rollout.device))


def launch(config: TrainRL, run: RunDirectory, place: int, weights: Weights | None, inbox: Inbox) -> WorkerProcess:
    """Start the worker of a place."""
    logs = run.path / "workers"
    logs.mkdir(exist_ok=True)
    start = Start(
        policy=config.policy,
        rollout=config.rollout,
        mtp=config.mtp,
        tasks=config.tasks,
        seed=config.seed,
        ordered=config.max_lag == 0,
        weights=weights,
    )
    return WorkerProcess(start, logs / f"worker-{place}.log", inbox)
