"""Whatever state a run is in, it is read as far as it goes; what is broken is named and left out."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from synthetic_runs import FROZEN, NASTY, write_evaluation, write_head_run, write_lines, write_rl_run

from bebop.errors import UserError
from bebop.report.evaluations import read_evaluation
from bebop.report.reading import read_inputs, read_run
from bebop.report.runlog import RunKind
from bebop.report.transcripts import IMPOSSIBLE, MAX_EPISODES, compact, read_episodes, spread


def test_a_whole_run(tmp_path: Path) -> None:
    notes: list[str] = []
    run = read_run(write_rl_run(tmp_path, FROZEN), notes)
    assert notes == []
    assert (run.kind, run.name, run.is_speculating) == (RunKind.RL, "frozen-e2e_tv", True)
    assert run.bins is not None and run.bins.edges[-1] == math.inf
    assert run.bins.counts_TB.shape == (40, 11)
    assert run.num_episodes == 40 and len(run.episodes) == 40
    assert [depth for depth, _ in run.numbered("mtp/conditional@")] == [1, 2, 3]
    assert run.setting("async", "max_lag") == 2 and run.setting("async", "max_lag", "deeper") is None


def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = write_rl_run(tmp_path, FROZEN)
    for name in ("metrics.jsonl", "bins.jsonl", "transcripts.jsonl"):
        file = path / name
        file.write_bytes(file.read_bytes()[:-9])
    notes: list[str] = []
    run = read_run(path, notes)
    assert notes == []
    assert max(row.step for row in run.rows) == 39
    assert run.bins is not None and len(run.bins.steps_T) == 39
    assert run.num_episodes == 39


def test_metrics_alone_are_a_run(tmp_path: Path) -> None:
    """As another program would write one."""
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "time": 1.0, "mtp/accept_length": {"total": 6, "count": 2}}])
    run = read_run(tmp_path, [])
    assert run.is_speculating and run.provenance == () and run.bins is None
    assert math.isnan(run.seconds)
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "time": 1.0, "reward": 0.5}])
    assert not read_run(tmp_path, []).is_speculating


def test_what_is_broken_is_named_and_left_out(tmp_path: Path) -> None:
    path = write_rl_run(tmp_path, FROZEN)
    (path / "config.yaml").write_text("a: [1")
    lines = (path / "bins.jsonl").read_text().splitlines()
    other_edges = json.loads(lines[1]) | {"edges": [0.0, 1.0], "count": [1.0], "drafted": [1.0]}
    (path / "bins.jsonl").write_text("\n".join([lines[0], "{", json.dumps(other_edges), "[1]", *lines[2:]]) + "\n")
    (path / "transcripts.jsonl").write_text('{"step": 1}\n' + (path / "transcripts.jsonl").read_text())
    notes: list[str] = []
    run = read_run(path, notes)
    assert run.bins is not None and len(run.bins.steps_T) == 39
    assert len(run.episodes) == 40
    assert [note.removeprefix(str(path)) for note in notes] == [
        "/transcripts.jsonl: 1 of the lines looked at are not transcripts and are left out.",
        "/config.yaml is not a mapping in YAML; settings are not shown.",
        "/bins.jsonl: 3 lines are not entropy bins (or have other edges) and are left out.",
    ]


def test_a_step_written_again_after_a_resumption_counts_once(tmp_path: Path) -> None:
    path = write_rl_run(tmp_path, replace(FROZEN, steps=8))
    lines = (path / "bins.jsonl").read_text().splitlines()
    (path / "bins.jsonl").write_text("\n".join([*lines, lines[3]]) + "\n")
    run = read_run(path, [])
    assert run.bins is not None and run.bins.steps_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_series_leave_out_texts_and_what_is_not_finite(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "time": 1.0, "loss": "NaN", "phase": "warm-up"},
        {"step": 2, "time": 2.0, "loss": {"total": 6.0, "count": 4.0}, "phase": "main"},
        {"step": 3, "time": 3.0, "loss": {"total": 0.0, "count": 0.0}},
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    run = read_run(tmp_path, [])
    loss = run.series("loss")
    assert loss is not None and (loss.steps_T.tolist(), loss.pooled) == ([2], 1.5)
    assert run.series("phase") is None and run.series("absent") is None


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    small = replace(FROZEN, name="arm", steps=2)
    paths = [write_rl_run(tmp_path / parent, small) for parent in ("first", "second")]
    assert [run.name for run in read_inputs(paths).runs] == ["first/arm", "second/arm"]
    assert [run.name for run in read_inputs([paths[0], paths[0]]).runs] == ["first/arm", "first/arm (2)"]


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    paths = [
        write_head_run(tmp_path),
        write_rl_run(tmp_path, replace(FROZEN, steps=2)),
        write_evaluation(tmp_path, "ce", {"rejection": 0.8}),
    ]
    inputs = read_inputs(paths)
    assert [run.name for run in inputs.heads] == ["head"]
    assert [run.name for run in inputs.runs] == ["frozen-e2e_tv"]
    assert [one.name for one in inputs.evaluations] == ["ce"]


def test_a_run_without_a_step_is_left_out_and_alone_it_is_a_mistake(tmp_path: Path) -> None:
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    (waiting / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(UserError, match="wait for a run's first step"):
        read_inputs([waiting])
    inputs = read_inputs([waiting, write_rl_run(tmp_path, replace(FROZEN, steps=2))])
    assert len(inputs.runs) == 1 and "has no metrics yet" in inputs.notes[0]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_what_is_no_run_is_a_mistake(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="give"):
        read_inputs([tmp_path / name])


@pytest.mark.parametrize("text", ["{", "[]", '{"tasks": [{"task": "math"}], "policy": "x"}', '{"policy": "tiny"}'])
def test_a_file_that_is_no_evaluation_is_a_mistake(text: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(UserError, match="bebop eval-mtp --json"):
        read_inputs([path])


def test_an_evaluation(tmp_path: Path) -> None:
    found = read_evaluation(write_evaluation(tmp_path, "ce", {"target_only": 0.5, "rejection": 0.8}))
    assert found.rules == ["rejection", "target_only"]
    lengths = [1 + rate + rate**2 + rate**3 for rate in (0.8, 0.77, 0.74)]
    assert found.pooled("rejection/accept_length") == pytest.approx(sum(lengths) / 3)
    assert found.get("math", "block/accept_length") is None and found.pooled("block/accept_length") is None


def test_a_sample_of_transcripts_spans_the_run(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    line = {"task": "math", "problem": "p", "reward": 1.0, "reason": "solved"}
    long = [{"given": "", "tokens": [{"text": "x", "source": "drafted"}] * 1200}]
    write_lines(path, [{**line, "step": step, "turns": long} for step in range(500)])
    episodes, count = read_episodes(path, [])
    steps = [one.step for one in episodes]
    assert count == 500 and len(steps) == 20  # 24,000 tokens of 1,200 each
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] > 480
    assert max(after - before for before, after in pairwise(steps)) <= 100


def test_spread_takes_ends_first_and_nothing_twice() -> None:
    assert spread(0, 5) == [] and spread(1, 5) == [0]
    assert spread(5, 5)[:3] == [0, 4, 2]
    assert sorted(spread(1000, MAX_EPISODES)) == list(range(0, 1000, 21))


def test_a_transcript_keeps_what_the_page_shows() -> None:
    tokens = [
        {"text": NASTY, "source": "drafted", "logprob": -0.5, "draft_logprob": -0.25, "overlap": 0.9, "entropy": 0.3},
        {"text": "b", "source": "corrected", "logprob": -0.5, "draft_logprob": "-Infinity", "version": 3},
        {"text": "c", "source": "invented", "logprob": math.nan, "version": "many"},
    ]
    record = {"step": 4, "task": "math", "turns": [{"given": "g", "tokens": tokens}]}
    episode = compact(json.dumps(record).encode())
    assert episode is not None
    turn = episode.record["turns"][0]
    assert turn["sources"] == "dc?" and turn["texts"][0] == NASTY
    assert turn["draft_logprob"] == [-0.25, IMPOSSIBLE, None]
    assert turn["logprob"] == [-0.5, -0.5, None] and turn["versions"] == [None, 3, None]
    assert compact(b"[1, 2]") is None and compact(b"{") is None
