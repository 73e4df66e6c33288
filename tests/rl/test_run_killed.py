"""`bebop train-rl` killed, interrupted and out of disk: it says what is the matter, and goes on where it stood."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bebop.runs import read_metrics

pytestmark = pytest.mark.slow

SETTINGS = (
    "policy=tiny",
    "tasks=[{name: math}]",
    "groups_per_step=2",
    "group_size=4",
    "rollout.rows=8",
    "rollout.max_turn_tokens=48",
    "evaluation.every=0",
    "checkpoint_every=2",
)
PATIENCE = 240.0


def command(run: Path, steps: int, *more: str) -> list[str]:
    own = (f"run={run}", f"output={run}-out", f"steps={steps}")
    return [sys.executable, "-m", "bebop", "train-rl", "configs/train-rl-tiny.yaml", *SETTINGS, *own, *more]


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [row.step for row in read_metrics(path)] if path.exists() else []


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def workers_of(run: Path) -> list[int]:
    """Worker processes that write to this run's logs."""
    logs = str((run / "workers").resolve())
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(directory / "fd" / "2").startswith(logs):
                found.append(int(directory.name))
        except OSError:
            continue
    return found


def test_a_learner_killed_at_any_moment_leaves_nothing_running_and_resumes_to_the_same_end(tmp_path):
    run = tmp_path / "run"
    learner = subprocess.Popen(command(run, 6, "async.max_lag=0"))
    wait_until(lambda: 3 in steps_of(run))
    workers = workers_of(run)
    assert workers
    learner.kill()
    learner.wait()
    wait_until(lambda: not workers_of(run))
    subprocess.run(command(run, 6, "async.max_lag=0"), check=True, timeout=PATIENCE)
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    whole = tmp_path / "whole"
    subprocess.run(command(whole, 6, "async.max_lag=0"), check=True, timeout=PATIENCE)
    for name in ("transcripts.jsonl", "bins.jsonl"):
        assert (run / name).read_text() == (whole / name).read_text()
    weights = [path / "model.safetensors" for path in (Path(f"{run}-out"), Path(f"{whole}-out"))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_ctrl_c_stops_at_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    run = tmp_path / "run"
    learner = subprocess.Popen(command(run, 100), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: 3 in steps_of(run))
    learner.send_signal(signal.SIGINT)
    out, err = learner.communicate(timeout=PATIENCE)
    assert learner.returncode == 130
    assert "the same command goes on from there" in out
    assert "Traceback" not in err
    last = steps_of(run)[-1]
    assert (run / "checkpoints" / f"step-{last:08d}").is_dir()
    assert not workers_of(run)
    again = subprocess.Popen(command(run, 100))
    wait_until(lambda: last + 2 in steps_of(run))
    again.send_signal(signal.SIGINT)
    assert again.wait(PATIENCE) == 130
    assert steps_of(run) == list(range(1, steps_of(run)[-1] + 1))


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    run = tmp_path / "run"
    first = subprocess.Popen(command(run, 100))
    wait_until(lambda: 1 in steps_of(run))
    second = subprocess.run(command(run, 100), capture_output=True, text=True, timeout=PATIENCE)
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 130
    assert second.returncode == 2
    assert f"another process is working on the run {run}" in second.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(tmp_path):
    """The run's directory is a small file system of its own, in a mount namespace."""
    disk = tmp_path / "disk"
    disk.mkdir()
    start = " ".join(f"'{word}'" for word in command(disk / "run", 4))
    script = f"""
        mount -t tmpfs -o size=30m tmpfs '{disk}' || exit 77
        {start}; echo "status $?"
        mount -o remount,size=400m '{disk}'
        {start}; echo "status $?"
        grep -c '"step": [1-4],' '{disk}/run/metrics.jsonl'
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=2 * PATIENCE)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == ["status 2", "status 0"]
    assert f"there is no space left for the run {disk / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "4"
