"""The report as one HTML file that needs nothing else.

Whatever comes from a run (names, texts written by a model) is escaped by the template or put in by script as text. The
page's own policy allows only its three scripts, by their hashes, and no connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bebop.errors import UserError
from bebop.report.headlines import Card
from bebop.report.plotly_charts import chart_data
from bebop.report.runlog import RunLog
from bebop.report.section import Missing, Section


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a report says, in the order in which it is read."""

    title: str
    verdict: str
    cards: Sequence[Card]
    sections: Sequence[Section]
    appendix: Sequence[Section]
    """Sections after the transcripts."""
    missing: Sequence[Missing]
    runs: Sequence[RunLog]
    """Those with transcripts to look at."""


def render(page: Page) -> str:
    """The whole page; UserError where plotly, whose script it holds, is not installed."""
    scripts = [asset("theme.js"), plotly_script(), asset("charts.js"), asset("transcripts.js"), asset("page.js")]
    charts = {chart.id: chart_data(chart) for section in (*page.sections, *page.appendix) for chart in section.charts}
    environment = Environment(
        loader=PackageLoader("bebop.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        page=page,
        style=Markup(asset("page.css")),
        policy=content_policy(scripts),
        theme_script=Markup(scripts[0]),
        scripts=[Markup(script) for script in scripts[1:]],
        data=json_block({"charts": charts, "transcripts": transcripts(page.runs)}),
        has_transcripts=any(run.episodes for run in page.runs),
    )


def plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise UserError("the report needs plotly; install it with `pip install 'bebop-rl[report]'`") from error
    return get_plotlyjs()


def asset(name: str) -> str:
    """A file of this package."""
    return resources.files("bebop.report").joinpath("assets", name).read_text(encoding="utf-8")


def content_policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: these scripts, inline styles, images of the page's own making, nothing else."""
    digests = (base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"


def json_block(data: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the script element it stands in, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def transcripts(runs: Sequence[RunLog]) -> list[dict[str, Any]]:
    return [
        {
            "run": run.name,
            "total": run.num_episodes,
            "episodes": [{"step": one.step, "task": one.task, **one.record} for one in run.episodes],
        }
        for run in runs
        if run.episodes
    ]
