"""Two processes train one head as one process does: same losses, same weights, and a run may change their number."""

import json
import os
import socket
import subprocess
import sys
import traceback

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.cli import train_mtp as cli
from bebop.errors import UserError
from bebop.models.policy import new_policy, save_policy
from bebop.models.tiny import base_config, tiny_path
from bebop.training.parallel import World, check_share

SETTINGS = (
    "head=fresh",
    "checkpoint_every=2",
    "log_every=1",
    "dtype=float32",
    "data.collect.tasks=[{name: math}]",
    "data.collect.num_episodes=7",
    "data.collect.max_turn_tokens=10",
    "data.per_step=5",
    "data.micro_batch_tokens=250",
    "unroll.depths=3",
    "optimiser.warmup_steps=1",
    "loss.warm_up.until_overlap=0.9",
)


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    torch.manual_seed(0)
    backbone = Qwen3_5ForCausalLM(base_config(["full_attention"])).float().eval()
    path = tmp_path_factory.mktemp("policies") / "small"
    save_policy(new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path())), path)
    return path


def words(policy_path, place, *more):
    place.mkdir(exist_ok=True)
    (place / "config.yaml").write_text("{}\n")
    places = (f"policy={policy_path}", f"output={place / 'out'}", f"run={place / 'run'}")
    return [*places, *SETTINGS, *more]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Stopped(Exception):
    """What a process stops itself with."""


def stop_after(step):
    train = cli.train_mtp

    def stopping(settings, policy, data, run, show, world):
        def show_or_stop(report):
            if report.step > step:
                raise Stopped
            show(report)

        return train(settings, policy, data, run, show_or_stop, world)

    cli.train_mtp = stopping


def in_forks(num_processes, place, settings, last_step=None):
    """The command in so many forks, as torchrun would start it; each stops after ``last_step``."""
    port = free_port()
    children = []
    for rank in range(num_processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
                if last_step is not None:
                    stop_after(last_step)
                cli.command(place / "config.yaml", settings, False)
                code = 0
            except Stopped:
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * num_processes


def metrics(place):
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time")} for row in rows]


def assert_alike(place, reference):
    assert len(metrics(place)) == len(metrics(reference))
    for mine, theirs in zip(metrics(place), metrics(reference), strict=True):
        for name, value in theirs.items():
            if isinstance(value, dict):
                assert mine[name]["count"] == value["count"], name
                assert mine[name]["total"] == pytest.approx(value["total"], rel=1e-4), name
            else:
                assert mine[name] == pytest.approx(value, rel=1e-4), name
    mine, theirs = (load_file(one / "out" / "model.safetensors") for one in (place, reference))
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if name.startswith("mtp."):
            torch.testing.assert_close(
                mine[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name} {text}"
            )
        else:
            assert torch.equal(mine[name], tensor), name


@pytest.fixture(scope="module")
def alone(policy_path, tmp_path_factory):
    place = tmp_path_factory.mktemp("alone")
    in_forks(1, place, words(policy_path, place, "steps=4"))
    return place


@pytest.mark.parametrize("more", [(), ("unroll.recompute=true", "data.hidden=disk")], ids=["kept", "recomputed"])
def test_two_processes_are_as_one(policy_path, alone, tmp_path, more):
    in_forks(2, tmp_path / "two", words(policy_path, tmp_path / "two", "steps=4", *more))
    assert_alike(tmp_path / "two", alone)


@pytest.mark.parametrize("numbers", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(policy_path, alone, tmp_path, numbers):
    place = tmp_path / "run"
    settings = words(policy_path, place, "steps=4")
    in_forks(numbers[0], place, settings, last_step=2)
    assert not (place / "out").exists()
    in_forks(numbers[1], place, settings)
    assert_alike(place, alone)


def test_a_process_needs_something_to_do():
    check_share(World(rank=0, size=2), 2, "adamw")
    with pytest.raises(UserError, match="leaves some of 4 processes without a sequence"):
        check_share(World(rank=0, size=4), 3, "adamw")
    with pytest.raises(UserError, match="use adamw"):
        check_share(World(rank=0, size=2), 8, "muon")
    check_share(World(), 1, "muon")


@pytest.mark.slow
def test_torchrun_starts_it(policy_path, alone, tmp_path):
    place = tmp_path / "two"
    settings = words(policy_path, place, "steps=4")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    subprocess.run([*torchrun, "-m", "bebop", "train-mtp", str(place / "config.yaml"), *settings], check=True)
    assert_alike(place, alone)
