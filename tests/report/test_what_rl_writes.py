"""The report reads what `bebop.rl` writes: names and shapes of its own functions, and (slow) a run of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_report import outline

from bebop.core.grpo import PolicyLoss
from bebop.engines.base import Completion, DraftStats, StopReason, TokenSource
from bebop.metrics import MetricsWriter
from bebop.report.analysis_entropy import fit_bins
from bebop.report.reading import read_run
from bebop.report.sections.metrics import meaning
from bebop.report.write import write_report
from bebop.rl.config import TrainRL
from bebop.rl.learner import UpdateReport
from bebop.rl.loop import Observer, step_metrics, train_rl
from bebop.rl.metrics_of import draft_metrics
from bebop.rl.records import Busy, StepGroups
from bebop.rl.tally import UpdateTally
from bebop.rl.transcripts import ENTROPY_EDGES, add_to_bins, bins_row
from bebop.runs import RunDirectory

SMALL: dict[str, Any] = {
    "policy": "tiny",
    "tasks": [{"name": "math"}],
    "groups_per_step": 2,
    "group_size": 4,
    "rollout": {"rows": 8, "max_turn_tokens": 48, "dtype": "float32"},
    "dtype": "float32",
    "evaluation": {"every": 2, "problems": 4},
}


def completion(entropies: tuple[float, ...], sources: tuple[TokenSource, ...]) -> Completion:
    drafted = [source in (TokenSource.DRAFTED, TokenSource.CORRECTED) for source in sources]
    size = len(sources)
    return Completion(
        request_id="a",
        index=0,
        tokens=(1,) * size,
        logprobs=(-0.5,) * size,
        raw_logprobs=(-0.5,) * size,
        entropies=entropies,
        sources=sources,
        versions=(0,) * size,
        draft_logprobs=tuple(-0.5 if one else None for one in drafted),
        overlaps=tuple(0.8 if one else None for one in drafted),
        stop_reason=StopReason.STOP_TOKEN,
        drafts=DraftStats(rounds=2, emitted=size),
    )


def test_counters_and_bins_of_the_loop_are_understood(tmp_path: Path) -> None:
    drafts = DraftStats(rounds=10, emitted=25, drafted=(10, 10), reached=(10, 8), accepted=(8, 7), overlaps=(8.2, 6.9))
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(1, draft_metrics(drafts))
    writer.close()
    row = bins_row(1, [])
    sources = (TokenSource.DRAFTED, TokenSource.CORRECTED, TokenSource.DRAFTED, TokenSource.BONUS)
    add_to_bins(row, completion((0.01, 0.7, 1.5, 0.01), sources))
    (tmp_path / "bins.jsonl").write_text(json.dumps(row) + "\n")
    notes: list[str] = []
    run = read_run(tmp_path, notes)
    length = run.series("mtp/accept_length")
    assert notes == [] and length is not None and length.pooled == 2.5
    assert [round(series.pooled, 3) for _, series in run.numbered("mtp/conditional@")] == [0.8, 0.875]
    assert run.bins is not None and run.bins.edges == ENTROPY_EDGES
    fit = fit_bins(run.bins)
    assert fit is not None and [one.value for one in fit.acceptances] == [1.0, 0.0, 1.0]


def test_importance_is_told_as_it_is_logged() -> None:
    """Weights of 4 and 1, of which a bound of 2 cuts the first: the mean is theirs, not that of 2 and 1."""
    tally = UpdateTally(version=1)
    none_N = torch.zeros(2)
    loss = PolicyLoss(
        loss_N=none_N,
        importance_N=torch.tensor([4.0, 1.0]),
        is_truncated_N=torch.tensor([True, False]),
        is_clipped_N=none_N,
        kl_N=none_N,
    )
    batch: Any = SimpleNamespace(behaviour_N=torch.tensor([-2.0, -1.0]), versions_N=torch.zeros(2))
    tally.add(batch, loss, batch.behaviour_N + loss.importance_N.log())
    ratio, truncated = (tally.means[f"importance/{name}"] for name in ("ratio", "truncated"))
    assert (ratio.value, truncated.value) == (pytest.approx(2.5), 0.5)
    assert "before truncation" in meaning("importance/ratio")


def test_the_share_of_generation_is_told_as_it_is_logged() -> None:
    """Of the step, what the learner waited; engines were busy for longer."""
    seconds = {"step": 4.0, "exposed_generation": 1.0}
    report = UpdateReport(version=1, metrics={})
    metrics = step_metrics(StepGroups(learned=()), report, seconds, Busy(seconds=3.0, row_seconds=3.0))
    assert metrics["generation_share"] == 0.25
    assert "the learner waited" in meaning("generation_share")


@pytest.mark.slow
def test_a_run_of_tiny_is_reported_whole(tmp_path: Path) -> None:
    paths = []
    for mode in ("none", "frozen"):
        path = tmp_path / mode
        changes = {"run": path, "output": tmp_path / f"{mode}-policy", "steps": 4, "mtp": {"mode": mode}}
        config = TrainRL.model_validate(SMALL | changes, strict=False)
        run = RunDirectory.create(path, config, ["bebop", "train-rl"])
        train_rl(config, run, Observer(show=lambda step, metrics: None, is_called_off=lambda: False))
        paths.append(path)
    findings = write_report(paths, tmp_path / "report.html")
    assert [one.title for one in findings.missing] == [
        "What changed the accept length",
        "Cost of the head",
        "Acceptance by task, rule and head",
    ]
    page = outline(tmp_path / "report.html")
    wanted = {"step-time", "accept-length", "entropy", "depths", "reward", "lag", "transcripts", "provenance"}
    assert wanted <= set(page.ids())
    turn = page.data()["transcripts"][1]["episodes"][0]["turns"][0]
    assert {"logprob", "entropy", "draft_logprob", "overlap"} <= set(turn) and "d" in turn["sources"]
    assert "?" not in turn["sources"]
    names = read_run(paths[1], []).metric_names
    assert [name for name in names if not meaning(name)] == []
