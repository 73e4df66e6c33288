"""Whole runs of `tiny` with worker processes: what is exact, what survives, what is caught."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bebop.errors import UserError
from bebop.models.naming import EMBEDDING
from bebop.models.policy import Policy, load_policy
from bebop.rl.config import TrainRL
from bebop.rl.fleet import Interrupted
from bebop.rl.intake import Intake
from bebop.rl.loop import Observer, train_rl
from bebop.rl.publication import WeightStore, memory_directory
from bebop.rl.records import Group
from bebop.runs import RunDirectory

SMALL: dict[str, Any] = {
    "policy": "tiny",
    "tasks": [{"name": "math"}],
    "groups_per_step": 2,
    "group_size": 4,
    "rollout": {"rows": 8, "max_turn_tokens": 48, "dtype": "float32"},
    "dtype": "float32",
    "learner": {"optimiser": {"lr": 1e-3}},
    "async": {"max_lag": 0},
    "evaluation": {"every": 2, "problems": 4},
    "checkpoint_every": 2,
}


class Watcher:
    """Keeps what the run shows, and calls it off after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self._stop_after = stop_after

    def observer(self) -> Observer:
        return Observer(show=self._show, is_called_off=lambda: self._stop_after in self.rows)

    def _show(self, step: int, metrics: Any) -> None:
        self.rows[step] = dict(metrics)


def settings(path: Path, steps: int = 4, **changes: Any) -> TrainRL:
    return TrainRL.model_validate(
        SMALL | {"run": path / "run", "output": path / "out", "steps": steps} | changes, strict=False
    )


def play(config: TrainRL, watcher: Watcher | None = None) -> Policy:
    run = RunDirectory.open(config.run) if config.run.exists() else RunDirectory.create(config.run, config, ["test"])
    return train_rl(config, run, (watcher or Watcher()).observer())


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in policy.backbone.named_parameters()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all weights."""
    return sum(float((left[name] - right[name]).square().sum()) for name in left) ** 0.5


def rows(config: TrainRL) -> list[tuple[int, dict[str, Any]]]:
    """What the run wrote, without what a clock said."""
    timed = ("time/", "tokens_per_second", "generation_share", "rollout/rows")
    return [
        (row.step, {name: value for name, value in row.values.items() if not name.startswith(timed)})
        for row in RunDirectory.open(config.run).metrics()
    ]


@pytest.mark.parametrize("max_replaced", [0, 6])
def test_a_synchronous_run_is_a_function_of_its_settings_however_often_it_is_interrupted(tmp_path, max_replaced):
    config, again = (settings(tmp_path / name, max_replaced=max_replaced) for name in "ab")
    first = weights(play(config))
    with pytest.raises(Interrupted):
        play(again, Watcher(stop_after=3))
    assert [one.name for one in (again.run / "checkpoints").iterdir()] == ["step-00000003"]
    second = weights(play(again))
    assert equal(first, second)
    assert rows(config) == rows(again)
    assert [step for step, _ in rows(config)] == [0, 1, 2, 3, 4]
    assert any(values["groups/replaced"] > 0 for step, values in rows(config) if step) == (max_replaced > 0)
    for name in ("transcripts.jsonl", "bins.jsonl"):
        assert (config.run / name).read_text() == (again.run / name).read_text()
    assert not any(memory_directory(one.run).exists() for one in (config, again)), "published weights are left behind"
    assert not equal(weights(load_policy("tiny", dtype=torch.float32)), first)


def test_coupled_speculation_changes_neither_tokens_nor_rewards_nor_weights(tmp_path, monkeypatch):
    seen: dict[Intake, list[Sequence[Group]]] = {}
    gather = Intake.gather

    def recording(intake, version, is_called_off):
        groups = gather(intake, version, is_called_off)
        seen.setdefault(intake, []).append(groups.learned)
        return groups

    monkeypatch.setattr(Intake, "gather", recording)
    changes = {"steps": 5, "evaluation": {"every": 0}, "tasks": [{"name": "math"}, {"name": "agent"}]}
    plain = play(settings(tmp_path / "plain", **changes, mtp={"mode": "none", "rule": "coupled"}))
    drafted = play(settings(tmp_path / "drafted", **changes, mtp={"mode": "frozen", "rule": "coupled"}))
    without, with_drafts = seen.values()
    assert len(without) == len(with_drafts) == 5
    for ours, theirs in zip(without, with_drafts, strict=True):
        assert [[one.tokens for one in group.rollouts] for group in ours] == [
            [one.tokens for one in group.rollouts] for group in theirs
        ]
        assert [group.rewards for group in ours] == [group.rewards for group in theirs]
    assert all(not one.drafts.num_drafted for groups in without for group in groups for one in group.rollouts)
    assert sum(one.drafts.num_accepted for groups in with_drafts for group in groups for one in group.rollouts) > 100
    # Windows of one token and of four round differently. AdamW divides by the gradient's size, so where that is
    # rounding alone a weight may move by a part of the learning rate (1e-3); against the whole movement it is nothing.
    start = weights(load_policy("tiny", dtype=torch.float32))
    moved = distance(weights(plain), start)
    assert moved > 0.1
    assert distance(weights(plain), weights(drafted)) < 1e-3 * moved


def test_workers_that_are_slow_or_killed_delay_the_run_and_change_no_group(tmp_path, monkeypatch):
    seen: list[Group] = []
    gather = Intake.gather

    def disturbing(intake, version, is_called_off):
        if version == 1:
            threading.Thread(target=hold_up, args=(intake.fleet.pids[0],), daemon=True).start()
        if version == 2:
            os.kill(intake.fleet.pids[1], signal.SIGKILL)
        groups = gather(intake, version, is_called_off)
        seen.extend(groups.learned)
        restarts.append(intake.fleet.num_restarts)
        return groups

    restarts: list[int] = []
    monkeypatch.setattr(Intake, "gather", disturbing)
    changes = {"async": {"max_lag": 2}, "evaluation": {"every": 0}}
    config = settings(tmp_path, steps=6, **changes, rollout=SMALL["rollout"] | {"workers": 2})
    play(config)
    assert restarts[-1] == 1
    assert [group.number for group in seen] == list(range(12))
    assert len({one.plan.problem.id for group in seen for one in group.rollouts}) == 12
    assert all(len({one.plan.seed for one in group.rollouts}) == 4 for group in seen)
    lags = [values["lag/max"] for _, values in rows(config)]
    assert max(lags) <= 2


def hold_up(pid: int) -> None:
    """Let the process run a tenth of the time."""
    for _ in range(20):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.18)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


def test_a_poisoned_publication_is_caught_and_named(tmp_path, monkeypatch):
    write = WeightStore.write
    head = load_policy("tiny", dtype=torch.float32).head
    assert head is not None
    name, flipped = next((name, -one) for name, one in head.state_dict().items() if one.dim() == 2)

    def poisoned(self, version, tensors):
        stale = {EMBEDDING: tensors[EMBEDDING].roll(1), f"head.{name}": flipped}
        return write(self, version, dict(tensors) | stale)

    monkeypatch.setattr(WeightStore, "write", poisoned)
    wrong = rf"worker 0 does not hold .* 1: it has another embedding .* another lm_head .* another head \({name}\)"
    with pytest.raises(UserError, match=wrong):
        play(settings(tmp_path))
