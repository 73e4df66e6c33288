"""`bebop plan` from the command line: given numbers, a bench's file, a run, and their mistakes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import BASELINE, FROZEN, write_head_run, write_rl_run

from bebop.cli.main import run as run_cli
from bebop.errors import UserError
from bebop.plan.baseline import read_baseline
from bebop.plan.decoding import Acceptance, plan_batch
from bebop.plan.measurement import from_bench, lengthened


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        run_cli(["plan", *arguments])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def bench_file(path: Path) -> Path:
    """A bench in which a round of K drafts over B rows takes (1 + 0.02 B) (1 + 0.1 K) s; chances are 0.9, then 0.8."""
    acceptance = Acceptance(conditional_K=(0.9, 0.8))

    def arm(batch: int, k: int) -> dict[str, Any]:
        length = acceptance.accept_length(k)
        survivals = [0.9 * 0.8**depth for depth in range(k)]
        decoding = (1 + 0.02 * batch) * (1 + 0.1 * k) * 60 / length
        total = decoding + 5.0
        whole, apart = (dict.fromkeys(("median", "min", "max"), batch * 60 / seconds) for seconds in (total, decoding))
        return {
            "tokens_per_second": whole,
            "decode_tokens_per_second": apart,
            "accept_length": length if k else 1.0,
            "survival_by_depth": survivals,
            "prefill_share": 5.0 / total,
        }

    batches = {
        str(batch): {"arms": {"generate": {"tokens_per_second": {}}, **{f"k{k}": arm(batch, k) for k in (0, 2, 4)}}}
        for batch in (1, 8)
    }
    path.write_text(json.dumps({"bench": {"tokens": 60}, "batches": batches}))
    return path


def test_a_bench_is_turned_into_costs_and_acceptance(tmp_path: Path) -> None:
    measured = from_bench(json.loads(bench_file(tmp_path / "decode.json").read_text()))
    assert measured.acceptance.conditional_K == pytest.approx((0.9, 0.8, 0.8, 0.8))
    assert measured.costs.table[8][2] == pytest.approx(1.16 * 1.2)
    assert measured.costs.seconds(4.5, 3) == pytest.approx(1.09 * 1.3)
    assert measured.prefill_share(7) == pytest.approx(5 / (5 + 1.16 * 60))
    plan = plan_batch(measured.costs, measured.acceptance, 8, 4)
    assert plan.speed_ups[4] == pytest.approx(measured.acceptance.accept_length(4) / 1.4)


def test_given_numbers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--acceptance", "0.9,0.8", "--batch", "1,8", "--generation-share", "0.6", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["pays"] and plan["origin"] == "given numbers"
    assert [one["batch"] for one in plan["batches"]] == [1, 8]
    assert plan["step"]["synchronous"] > 1 and plan["head"] is None
    assert plan["conditional_acceptance"] == [0.9, 0.8]


def test_given_numbers_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--acceptance", "0.85", "--batch", "1,256")
    assert code == 0
    assert "Do not use it" in out and "drafting stops paying at batch 230" in out and "off" in out


def test_a_run_gives_the_step_and_a_head_its_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, head = write_rl_run(tmp_path, BASELINE), write_head_run(tmp_path)
    bench = bench_file(tmp_path / "decode.json")
    arguments = ("--bench", str(bench), "--rows", "8", "--draft", "4", "--run", str(run), "--head", str(head), "--json")
    code, out, _ = call(capsys, *arguments)
    plan = json.loads(out)
    assert code == 0
    logged = read_baseline(run)
    assert logged.steps == 40 and logged.step.step == pytest.approx(7.6, rel=0.03)
    generation = plan["generation_speed_up"]
    assert 1 < generation < plan["decoding_speed_up"]
    saved = min(logged.step.exposed, logged.step.generation * (1 - 1 / generation))
    assert plan["step"]["predicted_seconds"] == pytest.approx(logged.step.step - saved)
    assert plan["head"]["break_even_steps"] == pytest.approx(60.0 / saved)


def test_rows_that_the_groups_do_not_fill(tmp_path: Path) -> None:
    path = write_rl_run(tmp_path, BASELINE)
    more = "groups_per_step: 4\ngroup_size: 8\nrollout: {rows: 64, workers: 2}\n"
    (path / "config.yaml").write_text((path / "config.yaml").read_text() + more)
    baseline = read_baseline(path)
    assert baseline.rows == (2 + 1) * 4 * 8 // 2
    assert baseline.step.generation == pytest.approx(BASELINE.generation_seconds / 2, rel=0.03)


def test_rows_that_the_run_logged_come_before_its_setting(tmp_path: Path) -> None:
    path = write_rl_run(tmp_path, BASELINE)
    (path / "config.yaml").write_text((path / "config.yaml").read_text() + "rollout: {rows: 64}\n")
    metrics = path / "metrics.jsonl"
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in logged:
        row["rollout/rows"] = {"total": 20.0 * row["step"], "count": float(row["step"])}
    metrics.write_text("".join(json.dumps(row) + "\n" for row in logged))
    assert read_baseline(path).rows == 20


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--acceptance", "1.5"), "between 0 and 1"),
        (("--acceptance", "high"), "give numbers with commas"),
        (("--acceptance", "0.8", "--batch", "0"), "1 or more"),
        (("--acceptance", "0.8", "--costs", "0.1"), "such as 0.01,0.1"),
        (("--acceptance", "0.8", "--costs", "-1,0"), "0 or more"),
        (("--acceptance", "0.8", "--generation-share", "70"), "between 0 and 1"),
        (("--bench", "absent.json"), "make one with `bebop bench decode absent.json --json`"),
        (("--bench", "x.json", "--policy", "tiny"), "give one of them"),
        (("--acceptance", "0.8", "--head", "absent"), "--head has 'absent'; give seconds, or a run directory"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1


def test_what_is_no_bench_or_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bebop bench decode --json"):
        from_bench({"batches": {"1": {"arms": {"k0": {}}}}, "bench": {"tokens": 4}})
    with pytest.raises(UserError, match="drafts already"):
        read_baseline(write_rl_run(tmp_path, replace(FROZEN, steps=2)))


def test_a_longer_context_repeats_the_prompt() -> None:
    assert lengthened((1, 2, 3), 7) == (1, 2, 3, 1, 2, 3, 1)
