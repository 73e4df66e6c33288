"""The report as a file: what it shows, what it says is missing, and that nothing a run wrote becomes markup."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import (
    ARMS,
    BASELINE,
    FROZEN,
    NASTY,
    TARGET_ONLY,
    write_evaluation,
    write_everything,
    write_head_run,
    write_lines,
    write_rl_run,
)

from bebop.cli.main import run as run_cli
from bebop.cli.report import refitted_length
from bebop.errors import UserError
from bebop.report.analysis import Estimate
from bebop.report.charts import Axis, Chart, Trace
from bebop.report.matplotlib_charts import COLOURS
from bebop.report.page import asset
from bebop.report.write import ReportOptions, write_report

SECTIONS = [
    "step-time",
    "accept-length",
    "entropy",
    "decomposition",
    "depths",
    "reward",
    "lag",
    "head-cost",
    "evaluations",
    "transcripts",
    "metrics",
    "provenance",
]


class Outline(HTMLParser):
    """Elements, scripts and text of a page as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in: str = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section" and "id" in attributes]

    def data(self) -> dict[str, Any]:
        places = [attributes for tag, attributes in self.tags if tag == "script"]
        return json.loads(next(text for text, one in zip(self.scripts, places, strict=True) if one.get("id") == "data"))


def outline(path: Path) -> Outline:
    return Outline(path.read_text(encoding="utf-8"))


def test_everything_given_everything_shown(tmp_path: Path) -> None:
    out = tmp_path / "pages" / "report.html"
    figures = tmp_path / "figures"
    findings = write_report(write_everything(tmp_path / "runs"), out, ReportOptions(figures=figures))
    page = outline(out)
    assert page.ids() == SECTIONS
    assert findings.missing == ()
    plots = [attributes["data-chart"] for tag, attributes in page.tags if tag == "figure"]
    assert sorted(map(str, plots)) == sorted(page.data()["charts"])
    assert len(plots) == 17
    pictures = {path.name.split("--")[0].removesuffix(".png") for path in figures.iterdir()}
    assert pictures == set(plots)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())
    assert len(list(figures.iterdir())) == findings.num_figures


def test_headline_numbers(tmp_path: Path) -> None:
    findings = write_report(write_everything(tmp_path / "runs"), tmp_path / "report.html")
    assert findings.verdict.startswith("Steps of frozen-e2e_tv take 47% less time than those of no-mtp: 1.90×")
    told = {card.name: {number.label: number for number in card.numbers} for card in findings.cards}
    assert [card.is_baseline for card in findings.cards] == [True, False, False]
    assert set(told["no-mtp"]) == {"step time", "held-out reward"}
    frozen = told["frozen-e2e_tv"]
    assert list(frozen) == [
        "faster steps",
        "faster rollouts",
        "accept length",
        "slope on entropy",
        "held-out reward",
        "head paid for after",
    ]
    assert frozen["accept length"].text == "3.21"
    assert re.fullmatch(r"\[3\.\d\d, 3\.\d\d\]", frozen["accept length"].interval)
    assert findings.cards[2].about == "frozen head, rejection, K = 3 · asynchronous, lag up to 2 · 40 steps"


def test_the_page_needs_nothing_else_and_allows_only_its_own_scripts(tmp_path: Path) -> None:
    write_report([write_rl_run(tmp_path, FROZEN)], tmp_path / "report.html")
    page = outline(tmp_path / "report.html")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base"), tag
        assert "src" not in attributes and not str(attributes.get("href", "#")).startswith("http"), attributes
    policy = next(str(one["content"]) for _, one in page.tags if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    runnable = [text for text in page.scripts if not text.startswith("{")]
    assert len(runnable) == 5
    for text in runnable:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_nothing_that_a_run_wrote_becomes_markup(tmp_path: Path) -> None:
    nasty = NASTY.replace("/", "").strip()
    path = write_rl_run(tmp_path, replace(FROZEN, name=nasty, steps=12))
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config.replace("rejection", json.dumps(NASTY)))
    (path / "bins.jsonl").write_text(NASTY + (path / "bins.jsonl").read_text())
    rows = (path / "metrics.jsonl").read_text().replace("reward/math", "reward/" + json.dumps(NASTY)[1:-1])
    (path / "metrics.jsonl").write_text(rows)
    plain = write_rl_run(tmp_path, BASELINE)
    evaluation = write_evaluation(tmp_path, nasty, {"rejection": 0.8})
    write_report([path, plain, evaluation], tmp_path / "report.html", ReportOptions(title=NASTY))
    page = outline(tmp_path / "report.html")
    assert len(page.scripts) == 6
    # Browsers end a script at more than what this parser ends it at, so the data hold no such sign at all.
    assert not set("<>&") & set(next(text for text in page.scripts if text.startswith("{")))
    assert sum(tag == "img" for tag, _ in page.tags) == 0
    assert "onerror=alert(2)" in page.text
    texts = page.data()["transcripts"][0]["episodes"][0]["turns"][0]["texts"]
    assert NASTY in texts


def test_texts_go_in_as_text() -> None:
    """The scripts have no way to make markup from a text."""
    for name in ("charts.js", "transcripts.js", "page.js", "theme.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", asset(name)), name


def test_a_run_of_few_metrics_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "bare"
    path.mkdir()
    write_lines(path / "metrics.jsonl", [{"step": n, "time": float(n), "reward": 0.1 * n} for n in range(1, 4)])
    findings = write_report([path], tmp_path / "report.html")
    assert [one.title for one in findings.missing] == [
        "Step time",
        "Accept length",
        "Entropy and acceptance",
        "What changed the accept length",
        "Acceptance by depth",
        "Lag",
        "Cost of the head",
        "Acceptance by task, rule and head",
    ]
    page = outline(tmp_path / "report.html")
    assert page.ids() == ["reward", "metrics", "provenance", "missing"]
    assert "no run logged time/step." in page.text


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_run_that_has_just_begun(steps: int, tmp_path: Path) -> None:
    paths = [write_rl_run(tmp_path, replace(run, steps=steps)) for run in (BASELINE, FROZEN)]
    figures = tmp_path / "png" if steps == 1 else None
    write_report([*paths, write_head_run(tmp_path)], tmp_path / "report.html", ReportOptions(figures=figures))
    assert {"accept-length", "depths", "reward", "lag"} <= set(outline(tmp_path / "report.html").ids())


def test_speculation_without_a_baseline_claims_no_speed_up(tmp_path: Path) -> None:
    findings = write_report([write_rl_run(tmp_path, FROZEN)], tmp_path / "report.html")
    assert findings.verdict == "frozen-e2e_tv"
    assert "faster steps" not in [number.label for number in findings.cards[0].numbers]
    assert "No run without speculation is given" in outline(tmp_path / "report.html").text


def test_a_slower_run_is_called_slower(tmp_path: Path) -> None:
    slow = replace(TARGET_ONLY, step_seconds=9.0)
    paths = [write_rl_run(tmp_path, run) for run in (BASELINE, slow)]
    findings = write_report([*paths, write_head_run(tmp_path)], tmp_path / "report.html")
    assert findings.verdict.startswith("No run is faster than no-mtp; the closest is target-only-ce at 0.8")
    assert findings.cards[1].numbers[-1].text == "never"


def test_runs_that_cannot_be_told_apart_are_called_so(tmp_path: Path) -> None:
    same = replace(FROZEN, step_seconds=BASELINE.step_seconds, generation_seconds=BASELINE.generation_seconds, steps=12)
    paths = [write_rl_run(tmp_path, run) for run in (replace(BASELINE, steps=12), same)]
    findings = write_report([*paths, write_head_run(tmp_path)], tmp_path / "report.html")
    assert findings.verdict.startswith("Steps of frozen-e2e_tv and of no-mtp cannot be told apart: ")
    told = {number.label: number.text for number in findings.cards[1].numbers}
    assert told["head paid for after"] in ("not clear yet", "never")


def test_few_steps_make_no_headline_of_a_slope(tmp_path: Path) -> None:
    findings = write_report([write_rl_run(tmp_path, replace(FROZEN, steps=9))], tmp_path / "report.html")
    assert "slope on entropy" not in [number.label for number in findings.cards[0].numbers]
    assert "Over tokens, one nat more changes the acceptance by" in outline(tmp_path / "report.html").text


def test_heads_and_evaluations_alone(tmp_path: Path) -> None:
    paths = [write_head_run(tmp_path), write_evaluation(tmp_path, "ce", {"rejection": 0.8})]
    write_report(paths, tmp_path / "report.html")
    assert outline(tmp_path / "report.html").ids() == ["head-cost", "evaluations", "metrics", "provenance"]


def test_a_refitted_head_splits_the_loss(tmp_path: Path) -> None:
    path = write_rl_run(tmp_path, TARGET_ONLY)
    options = ReportOptions(refitted={TARGET_ONLY.name: Estimate(value=2.7)})
    write_report([path], tmp_path / "report.html", options)
    text = outline(tmp_path / "report.html").text
    assert "mismatch B − A" in text and "intrinsic C − B" in text
    with pytest.raises(UserError, match="no run 'other'"):
        write_report([path], tmp_path / "report.html", ReportOptions(refitted={"other": Estimate(value=2.7)}))
    with pytest.raises(UserError, match="no run 'other'"):
        write_report([path], tmp_path / "report.html", ReportOptions(baseline="other"))


def test_a_head_is_refitted_for_a_run_that_has_drafted(tmp_path: Path) -> None:
    """Not for one that was evaluated at its start and has no step yet, nor for one without speculation."""
    begun = write_rl_run(tmp_path, FROZEN)
    metrics = begun / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    for path in (begun, write_rl_run(tmp_path, BASELINE)):
        options = ReportOptions(refitted={path.name: Estimate(value=2.7)})
        with pytest.raises(UserError, match=f"{path.name} has logged no mtp/accept_length .* leave out --refitted"):
            write_report([path], tmp_path / "report.html", options)
    write_report([begun], tmp_path / "report.html")


def test_a_refitted_head_is_a_number_or_an_evaluation(tmp_path: Path) -> None:
    assert refitted_length("frozen=2.9") == ("frozen", Estimate(value=2.9))
    path = write_evaluation(tmp_path, "refit", {"rejection": 0.8})
    name, length = refitted_length(f"frozen={path}")
    assert (name, round(length.value, 3)) == ("frozen", 2.821)
    with pytest.raises(UserError, match="RUN=VALUE"):
        refitted_length("2.9")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(write_rl_run(tmp_path, replace(run, steps=10))) for run in ARMS]
    out = tmp_path / "report.html"
    with pytest.raises(SystemExit) as stop:
        run_cli(["report", *paths, "--out", str(out)])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    assert "faster steps" in told and "not shown: Cost of the head" in told
    assert told.splitlines()[-1] == f"the report is in {out}"
    evaluation = write_evaluation(tmp_path, "ce", {"rejection": 0.8})
    with pytest.raises(SystemExit) as stop:
        run_cli(["report", str(evaluation), "--out", str(out), "--figures", str(tmp_path / "png")])
    assert capsys.readouterr().out.splitlines()[-1] == f"the report is in {out}, its figures (1) in {tmp_path / 'png'}"
    with pytest.raises(SystemExit) as stop:
        run_cli(["report", *paths, "--out", str(tmp_path)])
    assert stop.value.code == 2


def test_colours_of_page_and_pictures_are_the_same() -> None:
    light = asset("page.css").partition("}")[0]
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour};" in light, name


def test_charts_are_checked_where_they_are_made() -> None:
    with pytest.raises(AssertionError, match="lengths"):
        Trace(name="a", x=[1, 2], y=[1], colour="arm0")
    trace = Trace(name="a", x=[1], y=[1], colour="arm0", view="there")
    with pytest.raises(AssertionError, match="does not offer"):
        Chart(id="c", title="", caption="", x=Axis(title=""), y=Axis(title=""), traces=(trace,), views=("here",))
