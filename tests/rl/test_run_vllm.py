"""Ten steps of reinforcement learning with rollouts on vLLM's CPU build: weights published at every step."""

from pathlib import Path

import pytest
from test_run import SMALL, Watcher, play, settings

pytestmark = pytest.mark.vllm

STEPS = 10


def test_ten_steps_on_vllm(tmp_path: Path) -> None:
    """Every publication passed the frozen-head contract, or the run would have ended with a message."""
    watcher = Watcher()
    rollout = SMALL["rollout"] | {"engine": "vllm"}
    play(settings(tmp_path, STEPS, rollout=rollout, evaluation={"every": STEPS, "problems": 2}), watcher)
    steps = [watcher.rows[step] for step in range(1, STEPS + 1)]
    assert [row["version"] for row in steps] == list(range(1, STEPS + 1))
    for row in steps:
        assert row["reward"].count == 8
        assert row["mtp/accept_length"].value > 1.5, "the shipped head drafts well"
        assert row["lag/max"] == 0
    mismatches = [row["mismatch_kl"] for row in steps if "mismatch_kl" in row and row["mismatch_kl"].count]
    assert mismatches
    assert max(abs(one.value) for one in mismatches) < 1e-6, "the learner's log-probs are the sampler's"
