"""What the quickstart says of its runs."""

from pathlib import Path

from bebop.config import ConfigModel
from bebop.metrics import Mean
from bebop.quickstart.findings import learning
from bebop.runs import RunDirectory


def run_with(path: Path, seconds: float, tokens: int, length: Mean | None = None) -> None:
    run = RunDirectory.create(path, ConfigModel(), ["bebop"])
    with run.metrics_writer() as writer:
        for step in (1, 2):
            drafted = {} if length is None else {"mtp/accept_length": length}
            writer.write(step, {"time/step": seconds, "tokens": tokens, **drafted})


def test_arms_are_compared_by_the_run_and_by_the_token(tmp_path: Path) -> None:
    run_with(tmp_path / "rl-plain", seconds=3.0, tokens=100)
    run_with(tmp_path / "rl-drafted", seconds=2.0, tokens=120, length=Mean(9.0, 3))
    assert learning(tmp_path) == [
        "plain: 2 updates, 3.00 s a step",
        "  held-out reward was not measured",
        "drafted: 2 updates, 2.00 s a step, 1.50 times as fast (1.80 per token), accept length 3.00",
        "  held-out reward was not measured",
    ]
