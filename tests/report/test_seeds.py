"""Arms of several seeds, from runs written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bebop.errors import UserError
from bebop.report.seeds import compared, difference_of_means, main, permutation_p, summary


def write_run(path: Path, rewards: tuple[float, float], step_seconds: float = 2.0) -> str:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("tasks:\n- name: math\nsteps: 2\n", encoding="utf-8")
    heldout = [{"heldout_reward": mean(value), "heldout_reward/math": mean(value)} for value in rewards]
    rows = [
        {"step": 0, "time": 0.0} | heldout[0],
        {"step": 1, "time": 1.0, "reward": mean(rewards[0]), "time/step": 100.0},
        {"step": 2, "time": 2.0, "reward": mean(rewards[1]), "time/step": step_seconds} | heldout[1],
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mean(value: float) -> dict[str, float]:
    return {"total": 10 * value, "count": 10}


def test_an_arm_is_what_its_seeds_learnt(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", (0.2, 0.5)), write_run(tmp_path / "b", (0.4, 0.5), step_seconds=4.0)]
    arm = summary("async", ",".join(runs))
    assert (arm.num_seeds, arm.num_steps) == (2, 2)
    assert arm.heldout_before["math"] == pytest.approx(0.3)
    assert arm.heldout_gain["all"] == pytest.approx([0.3, 0.1])
    assert arm.training_reward == pytest.approx([0.35, 0.45])
    assert arm.step_seconds == [2.0, 4.0], "the first step is no part of it"


def test_permutation_counts_the_assignments_that_differ_as_much() -> None:
    assert permutation_p([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(2 / 20)
    assert permutation_p([1.0, 4.0], [2.0, 3.0]) == 1.0


def test_the_interval_of_a_difference_is_students() -> None:
    """Variances of 2 on both sides, two values each: half = t(1) sqrt(2)."""
    gap = difference_of_means([1.0, 3.0], [0.0, 2.0])
    assert gap.value == 1.0
    assert gap.high - gap.value == pytest.approx(12.7062 * 2**0.5, rel=1e-4)


def test_arms_are_compared_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "a", (0.2, 0.5)) + "," + write_run(tmp_path / "b", (0.2, 0.6))
    other = write_run(tmp_path / "c", (0.2, 0.4)) + "," + write_run(tmp_path / "d", (0.2, 0.3))
    main([f"with={one}", f"without={other}", "--json", str(tmp_path / "seeds.json")])
    shown = capsys.readouterr().out
    assert "| with | 2 | 2 | 0.38 | 0.20 to 0.55 | 0.20 to 0.55 | 2.00 |" in shown
    assert "held-out reward, with less without: +0.200" in shown
    written = json.loads((tmp_path / "seeds.json").read_text())
    assert [arm["name"] for arm in written["arms"]] == ["with", "without"]
    names = [one.figure for one in compared(summary("with", one), summary("without", other))]
    assert names == ["training reward", "held-out reward"]


def test_what_is_no_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NAME=RUN"):
        main(["runs/a"])
    paths = [without_evaluation(write_run(tmp_path / "a", (0.2, 0.5))), write_run(tmp_path / "b", (0.2, 0.5))]
    with pytest.raises(UserError, match="evaluation"):
        summary("with", ",".join(paths))
    Path(paths[0], "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="logged no reward"):
        summary("begun", paths[0])


def without_evaluation(path: str) -> str:
    rows = [{"step": step, "time": 0.0, "reward": mean(0.25 * step)} for step in (1, 2)]
    Path(path, "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_runs_without_evaluation_are_compared_by_training_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (without_evaluation(write_run(tmp_path / name, (0.2, 0.5))) for name in ("a", "b"))
    main([f"with={one}", f"without={other}"])
    shown = capsys.readouterr().out
    assert "| with | 1 | 2 | 0.38 |" in shown
    assert "training reward" in shown and "held-out" not in shown


def test_one_seed_has_no_interval_and_its_bounds_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_run(tmp_path / "a", (0.2, 0.5)), write_run(tmp_path / "b", (0.2, 0.4))
    main([f"with={one}", f"without={other}", "--json", str(tmp_path / "seeds.json")])
    assert "+0.100 (no interval from one seed), permutation p = 1.00" in capsys.readouterr().out
    assert json.loads((tmp_path / "seeds.json").read_text())["comparisons"][0]["difference"]["low"] is None
