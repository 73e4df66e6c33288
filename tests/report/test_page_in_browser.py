"""The page in headless Chromium: a silent console, plots drawn, toggles that toggle, no overflow on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from synthetic_runs import NASTY, write_everything

from bebop.report.write import ReportOptions, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; install the package `chromium`"),
]

DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    out = directory / "report.html"
    write_report(write_everything(directory / "runs"), out, ReportOptions(title=f"Three arms {NASTY}"))
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def desktop(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.open(page, *DESKTOP)
    yield browser
    assert browser.errors == []


@pytest.fixture
def phone(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.open(page, *PHONE, phone=True)
    yield browser
    assert browser.errors == []


def traces_of(browser: Browser, chart: str) -> list[str]:
    """Names of what a chart shows."""
    return browser.evaluate(f"document.querySelector('[data-chart={chart}] .plot').data.map((one) => one.name ?? '')")


def test_every_chart_is_drawn_and_the_console_is_silent(desktop: Browser) -> None:
    drawn = desktop.evaluate(
        "[...document.querySelectorAll('figure[data-chart]')].map((one) => one.querySelectorAll('.main-svg').length)"
    )
    assert len(drawn) == 17 and min(drawn) >= 1
    marks = desktop.evaluate(
        "[...document.querySelectorAll('figure[data-chart]')]"
        ".filter((one) => !one.querySelector('.plot path.js-line, .plot .points path')).map((one) => one.dataset.chart)"
    )
    assert marks == []


def test_a_name_in_the_legend_hides_and_shows_its_run(desktop: Browser) -> None:
    assert "no-mtp" in traces_of(desktop, "step-seconds")
    legend = "[data-chart=step-seconds] .legend button"
    desktop.click(legend, "no-mtp")
    assert traces_of(desktop, "step-seconds") == ["target-only-ce", "frozen-e2e_tv"]
    desktop.click(legend, "no-mtp")
    assert "no-mtp" in traces_of(desktop, "step-seconds")


def test_a_view_is_chosen(desktop: Browser) -> None:
    rewards = "document.querySelector('[data-chart=reward-heldout] .plot').data[0].y[0]"
    together = desktop.evaluate(rewards)
    desktop.click("[data-chart=reward-heldout] .choice button", "agent")
    assert desktop.evaluate(rewards) == pytest.approx(0.15)
    assert together == pytest.approx(1 / 3, abs=0.01)
    pressed = "[...document.querySelectorAll('[data-chart=reward-heldout] .choice button[aria-pressed=true]')]"
    assert desktop.evaluate(f"{pressed}.map((one) => one.textContent)") == ["agent"]


def test_light_and_dark(desktop: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('[data-chart=accept-length] .plot').layout.font.color"
    before = desktop.evaluate(paper), desktop.evaluate(ink)
    desktop.click("#theme")
    after = desktop.evaluate(paper), desktop.evaluate(ink)
    assert before[0] != after[0] and before[1] != after[1]
    desktop.click("#theme")
    assert (desktop.evaluate(paper), desktop.evaluate(ink)) == before


def test_metrics_are_searched(desktop: Browser) -> None:
    visible = "[...document.querySelectorAll('table.long tbody tr')].filter((row) => !row.hidden).length"
    everything = desktop.evaluate(visible)
    desktop.evaluate(
        "(() => { const one = document.querySelector('.filter input'); one.value = 'LAG/';"
        " one.dispatchEvent(new Event('input')); })()"
    )
    assert 1 < desktop.evaluate(visible) < everything
    assert desktop.evaluate("document.querySelector('.filter span').textContent") == f"4 of {everything}"


def test_transcripts_are_text_and_tell_of_their_tokens(desktop: Browser) -> None:
    tokens = "[...document.querySelectorAll('#episode .token')]"
    assert NASTY.strip() in desktop.evaluate("document.getElementById('episode').textContent").replace("↵", "")
    assert desktop.evaluate("document.querySelectorAll('#episode img, #episode script').length") == 0
    sources = desktop.evaluate(f"[...new Set({tokens}.map((one) => one.dataset.source))].sort()")
    assert sources == ["bonus", "corrected", "drafted"]
    desktop.evaluate(f"{tokens}[0].click()")
    told = desktop.evaluate("document.getElementById('tip').innerText")
    for word in ("source", "target probability", "draft probability", "overlap", "entropy", "version"):
        assert word in told
    desktop.click("#colour-by button", "entropy")
    assert desktop.evaluate(f"{tokens}[0].classList.contains('scaled')")
    before = desktop.evaluate("document.getElementById('episode-line').textContent")
    desktop.click("#next")
    assert desktop.evaluate("document.getElementById('episode-line').textContent") != before


def test_a_phone_scrolls_in_one_direction_alone(phone: Browser) -> None:
    assert phone.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    wide = phone.evaluate(
        "[...document.querySelectorAll('main > *, .chart, .card, .viewer, .lead, .note, .controls')]"
        ".filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.className || one.id)"
    )
    assert wide == []
    plots = phone.evaluate("[...document.querySelectorAll('.plot')].map((one) => one.querySelector('svg').clientWidth)")
    assert min(plots) > 250 and max(plots) < PHONE[0]


def test_a_phone_taps(phone: Browser) -> None:
    phone.evaluate("document.querySelectorAll('#episode .token')[2].click()")
    box = phone.evaluate(
        "(() => { const one = document.getElementById('tip').getBoundingClientRect();"
        " return [one.left, innerWidth - one.right, innerHeight - one.bottom]; })()"
    )
    assert box == pytest.approx([10, 10, 10], abs=1)
    phone.click("[data-chart=depths] .choice button", "all up to this depth")
    assert phone.evaluate("document.querySelector('[data-chart=depths] .plot').layout.dragmode") is False
