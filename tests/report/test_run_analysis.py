"""What is planted into a run is found in it: slopes, drift, step times, break-even."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import ARMS, BASELINE, FROZEN, TARGET_ONLY, SyntheticRun, write_head_run, write_rl_run

from bebop.report.analysis import Estimate
from bebop.report.analysis_decomposition import decompose, refit
from bebop.report.analysis_entropy import fit_bins, fit_steps
from bebop.report.analysis_time import break_even, speed_up, step_time, token_speed_up
from bebop.report.comparison import choose_baseline, compare
from bebop.report.reading import read_inputs, read_run
from bebop.report.runlog import RunLog, Series, as_mean
from bebop.report.section import Section
from bebop.report.sections.head_cost import head_cost, served_by


def log_of(parent: Path, run: SyntheticRun) -> RunLog:
    return read_run(write_rl_run(parent, run), [])


def both(run: RunLog) -> tuple[Series, Series]:
    nats, length = run.series("entropy"), run.series("mtp/accept_length")
    assert nats is not None and length is not None
    return nats, length


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize("slope", [-1.68, -0.06])
def test_the_slope_over_steps_is_found(slope: float, tmp_path: Path) -> None:
    fit = fit_steps(*both(log_of(tmp_path, replace(FROZEN, slope=slope))))
    assert fit is not None
    assert holds(fit.line.slope, slope)
    assert fit.line.num_points == 40
    assert fit.block_slope.value == fit.line.slope.value


def test_the_slope_over_tokens_is_found(tmp_path: Path) -> None:
    bins = log_of(tmp_path, FROZEN).bins
    assert bins is not None
    fit = fit_bins(bins)
    assert fit is not None
    assert holds(fit.line.slope, FROZEN.slope / 4)
    assert fit.line.r < -0.8
    assert fit.drafted_B.sum() == bins.drafted_TB.sum()
    assert all(one.low <= one.value <= one.high for one in fit.acceptances)


def test_bins_without_drafts_are_left_out(tmp_path: Path) -> None:
    bins = log_of(tmp_path, FROZEN).bins
    assert bins is not None
    empty_TB = np.zeros_like(bins.drafted_TB)
    some_TB = bins.drafted_TB.copy()
    some_TB[:, 4:] = 0
    fit = fit_bins(replace(bins, drafted_TB=some_TB))
    assert fit is not None and len(fit.acceptances) == 4
    assert fit_bins(replace(bins, drafted_TB=empty_TB)) is None


def test_entropy_alone_leaves_no_residual(tmp_path: Path) -> None:
    found = decompose(*both(log_of(tmp_path, replace(TARGET_ONLY, drift=0.0))))
    assert found is not None
    assert found.change.value == pytest.approx(found.entropy_part.value + found.residual.value)
    assert holds(found.residual, 0.0)
    assert found.entropy_part.low > 0.2


def test_a_head_that_fits_less_and_less_shows_in_the_residual(tmp_path: Path) -> None:
    """The drift starts in the second half, so that the first half's line knows nothing of it."""
    nats, length = both(log_of(tmp_path, replace(FROZEN, slope=-1.0)))
    late_T = 0.5 * np.clip((length.steps_T - 20) / 20, 0, None)
    worn = replace(length, totals_T=length.totals_T - late_T * length.counts_T)
    found = decompose(nats, worn)
    assert found is not None
    assert found.residual.high < -0.2
    assert holds(found.residual, -0.5 * (1 - found.window / 2 / 20))


def test_too_few_steps_are_not_split(tmp_path: Path) -> None:
    nats, length = both(log_of(tmp_path, replace(FROZEN, steps=7)))
    assert decompose(nats, length) is None
    still = replace(nats, totals_T=nats.counts_T * 0.7)
    assert fit_steps(still, length) is None


def test_mismatch_and_intrinsic_add_up_to_the_loss() -> None:
    first, frozen, refitted = (Estimate(value=one, low=one - 0.1, high=one + 0.1) for one in (3.2, 2.6, 2.9))
    split = refit(first, frozen, refitted)
    assert split.mismatch.value == pytest.approx(0.3)
    assert split.intrinsic.value == pytest.approx(0.3)
    assert split.mismatch.value + split.intrinsic.value == pytest.approx(first.value - frozen.value)


def test_speed_ups_pair_steps_and_leave_out_the_first_and_the_end(tmp_path: Path) -> None:
    slow, fast = log_of(tmp_path, BASELINE), log_of(tmp_path, FROZEN)
    ratio = speed_up(slow, fast)
    assert ratio is not None and holds(ratio, BASELINE.step_seconds / FROZEN.step_seconds)
    time = step_time(fast)
    assert time is not None and time.num_steps == 37
    parts = sum(part.value for part in time.parts.values())
    assert parts + time.rest == pytest.approx(time.step.value)
    assert set(time.beside) == {"generation", "scoring"}


def test_steps_that_no_later_ones_are_played_beside_are_left_out(tmp_path: Path) -> None:
    log = log_of(tmp_path, FROZEN)

    def num_timed(config: dict) -> int:
        time = step_time(replace(log, config=config))
        assert time is not None
        return time.num_steps

    assert num_timed({"steps": 40, "async": {"max_lag": 2}}) == 37
    assert num_timed({"steps": 40, "async": {"max_lag": 0}}) == 39
    assert num_timed({"steps": 100, "async": {"max_lag": 2}}) == 39, "a run that is not over"
    assert num_timed({"steps": 40, "async": {"max_lag": 39}}) == 39, "no step is full"


def test_steps_of_a_shorter_run_are_compared_with_the_same_steps(tmp_path: Path) -> None:
    slow, fast = log_of(tmp_path, BASELINE), log_of(tmp_path, replace(FROZEN, steps=10))
    series, other = slow.series("time/step"), fast.series("time/step")
    assert series is not None and other is not None
    ratio = speed_up(slow, fast)
    assert ratio is not None
    assert ratio.value == pytest.approx(series.totals_T[1:8].sum() / other.totals_T[1:8].sum())


def with_tokens(run: RunLog, factor: float | None) -> RunLog:
    """The run with other counts of tokens, or without any."""
    rows = []
    for row in run.rows:
        others = {name: value for name, value in row.values.items() if name != "tokens"}
        if factor is not None and len(others) < len(row.values):
            tokens = row.values["tokens"]
            assert not isinstance(tokens, str)
            others["tokens"] = factor * as_mean(tokens).value
        rows.append(replace(row, values=others))
    return replace(run, rows=tuple(rows))


def test_a_step_that_writes_twice_the_tokens_is_twice_the_work(tmp_path: Path) -> None:
    slow, fast = log_of(tmp_path, BASELINE), log_of(tmp_path, FROZEN)
    before, after = token_speed_up(slow, fast), token_speed_up(slow, with_tokens(fast, 2))
    assert before is not None and after is not None
    assert after.value == pytest.approx(2 * before.value)
    assert speed_up(slow, with_tokens(fast, 2)) == speed_up(slow, fast)


def test_runs_that_do_not_count_tokens_have_no_speed_up_per_token(tmp_path: Path) -> None:
    slow, fast = log_of(tmp_path, BASELINE), log_of(tmp_path, FROZEN)
    mute = with_tokens(fast, None)
    assert token_speed_up(slow, mute) is None and speed_up(slow, mute) is not None


def test_break_even() -> None:
    slow = Estimate(value=10.0)
    steps = break_even(100.0, slow, Estimate(value=2.0, low=1.25, high=4.0))
    assert steps is not None
    assert (steps.value, steps.low, steps.high) == pytest.approx((20, 100 / 7.5, 50))
    unsure = break_even(100.0, slow, Estimate(value=1.1, low=0.9, high=1.3))
    assert unsure is not None and unsure.high == math.inf
    assert break_even(100.0, slow, Estimate(value=0.9)) is None


def test_the_baseline_is_the_run_without_speculation(tmp_path: Path) -> None:
    runs = [log_of(tmp_path, run) for run in reversed(ARMS)]
    chosen = choose_baseline(runs, None)
    assert chosen is not None and chosen.name == BASELINE.name
    assert choose_baseline(runs[:1], None) is None
    assert choose_baseline(runs, FROZEN.name) is runs[0]


def test_training_time_of_a_head_counts_every_session(tmp_path: Path) -> None:
    head = read_run(write_head_run(tmp_path, seconds=60.0), [])
    assert head.seconds == pytest.approx(60.0)
    again = replace(head.provenance[0], time="2026-11-01T09:00:30+00:00")
    resumed = replace(head, provenance=(*head.provenance, again))
    # From 0 s to the last row before 30 s (27 s), and from 30 s to the end.
    assert resumed.seconds == pytest.approx(27 + 30)


def test_a_head_is_credited_to_the_arms_that_have_it(tmp_path: Path) -> None:
    """Their policy is its output, however the path is written; one that no arm has is not that of another's arms."""
    arms = [write_rl_run(tmp_path, run) for run in ARMS]
    used = write_head_run(tmp_path, "used", output=Path("runs/head/policy").absolute())
    moved = write_head_run(tmp_path, "moved", output="runs/elsewhere/policy")

    def served(*heads: Path) -> dict[str, list[str]]:
        comparison = compare(read_inputs([*arms, *heads]), None, {})
        return {head.name: [arm.name for arm in served_by(comparison, head)] for head in comparison.inputs.heads}

    drafting = [TARGET_ONLY.name, FROZEN.name]
    assert served(used, moved) == {"used": drafting, "moved": []}
    assert served(moved) == {"moved": drafting}
    config = (arms[1] / "config.yaml").read_text()
    (arms[1] / "config.yaml").write_text(config.replace("runs/head/policy", "runs/copied/policy"))
    assert served(used, moved) == {"used": [FROZEN.name], "moved": [TARGET_ONLY.name]}


def test_a_head_that_no_arm_has_costs_and_wins_nothing_back(tmp_path: Path) -> None:
    arms = [write_rl_run(tmp_path, run) for run in (BASELINE, FROZEN)]
    heads = [write_head_run(tmp_path, "used"), write_head_run(tmp_path, "unused", output="elsewhere")]
    section = head_cost(compare(read_inputs([*arms, *heads]), None, {}))
    assert isinstance(section, Section)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in section.tables[0].rows}
    assert rows["used"][0] == FROZEN.name
    assert rows["unused"] == ["–", "60.0 s", "–", "–"]
