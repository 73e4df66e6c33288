"""`bebop train-mtp` killed with SIGKILL at any moment, again and again, ends with the same bytes as undisturbed.

The moments that matter are those around changes to files, so the command kills itself at the n-th of them, before or
after it is made; a few more kills come from outside, at any time.
"""

import json
import os
import random
import signal
import tempfile
import time
import traceback

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.cli import train_mtp as cli
from bebop.models.policy import new_policy, save_policy
from bebop.models.tiny import base_config, tiny_path

CHANGES = ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir", "write", "truncate", "open")


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    torch.manual_seed(0)
    backbone = Qwen3_5ForCausalLM(base_config(["full_attention"])).bfloat16().eval()
    path = tmp_path_factory.mktemp("policies") / "small"
    save_policy(new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path())), path)
    return path


def train(policy_path, place):
    settings = [
        f"policy={policy_path}",
        "head=fresh",
        f"output={place / 'out'}",
        f"run={place / 'run'}",
        "steps=5",
        "checkpoint_every=1",
        "log_every=1",
        "dtype=float32",
        "data.hidden=disk",
        "data.collect.tasks=[{name: math}]",
        "data.collect.num_episodes=4",
        "data.collect.max_turn_tokens=8",
        "data.per_step=3",
        "unroll.depths=3",
        "loss.warm_up.until_overlap=0.9",
    ]
    config = place / "config.yaml"
    if not config.exists():
        config.write_text("{}\n")
    cli.command(config, settings, False)


def kill_at(number, after):
    """Make the ``number``-th change to files this process's last deed."""
    left = [number]

    def guarded(change):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = change(*arguments, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CHANGES:
        setattr(os, name, guarded(getattr(os, name)))


def in_a_child(action, patience=None):
    """Run ``action`` in a fork, killed after ``patience`` seconds; -> whether it came to its end."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            code = 1
            try:
                action()
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        if patience is not None:
            time.sleep(patience)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        said.seek(0)
        assert killed or os.WEXITSTATUS(status) == 0, f"the command failed by itself:\n{said.read().decode()}"
        return not killed


def outcome(place):
    metrics = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if not name.startswith("time")} for row in metrics]
    return {
        "policy": (place / "out" / "model.safetensors").read_bytes(),
        "rollouts": (place / "run" / "rollouts.jsonl").read_bytes(),
        "metrics": kept,
    }


def test_killed_at_any_moment_it_ends_the_same(policy_path, tmp_path):
    """A run that got to its end is compared and a new one begun, so that kills keep falling into the middle of runs."""
    whole = tmp_path / "whole"
    whole.mkdir()
    started = time.monotonic()
    assert in_a_child(lambda: train(policy_path, whole))
    duration = time.monotonic() - started
    expected = outcome(whole)

    rng = random.Random(0)
    num_killed = 0
    cut = tmp_path / "cut0"
    cut.mkdir()
    for attempt in range(24):
        patience = rng.uniform(0, duration) if attempt % 6 == 5 else None

        moment = (rng.randint(1, 45), rng.random() < 0.5)

        def action(moment=moment, cut=cut):
            kill_at(*moment)
            train(policy_path, cut)

        if in_a_child(action, patience):
            assert outcome(cut) == expected
            cut = tmp_path / f"cut{attempt + 1}"
            cut.mkdir()
        else:
            num_killed += 1
    assert num_killed > 15
    assert in_a_child(lambda: train(policy_path, cut))
    assert outcome(cut) == expected
