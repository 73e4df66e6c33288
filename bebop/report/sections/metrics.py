"""Every metric that any run logged, what it means, and how the runs were made."""

from __future__ import annotations

import re

from bebop.report.analysis_time import STEP
from bebop.report.comparison import Comparison
from bebop.report.runlog import RunLog, Series
from bebop.report.section import Cell, Section, Table
from bebop.report.wording import DASH, general

MEANINGS = (
    (r"reward", "mean reward of the step's rollouts"),
    (r"reward/.+", "the same, of one task"),
    (r"heldout_reward", "mean reward on held-out problems"),
    (r"heldout_reward/.+", "the same, of one task"),
    (r"entropy", "nats per token, of the sampling distribution"),
    (r"tokens", "tokens that the policy wrote"),
    (r"tokens_per_second", "tokens written per second of step time"),
    (r"version", "updates that the policy has had"),
    (r"mtp/accept_length", "tokens per round: (rounds + accepted) / rounds"),
    (r"mtp/acceptance_rate", "accepted / drafted tokens"),
    (r"mtp/conditional@\d+", "chance that this draft survives, given that those before it did"),
    (r"mtp/survival@\d+", "chance that all drafts up to this one survive"),
    (r"mtp/overlap@\d+", "sum over the vocabulary of min(p, q) at this depth"),
    (r"mtp/loss", "loss of the head"),
    (r"mtp/expected_accepted", "accepted drafts that rejection is expected to give"),
    (r"mtp/is_warm", "1 once the warm-up of the head's loss is over"),
    (r"(mtp/)?grad_norm", "norm of the gradient before clipping"),
    (r"(mtp/)?lr", "learning rate"),
    (r"lag", "updates between a token's sampling and its use, mean per token"),
    (r"lag/max", "largest lag of the step"),
    (r"lag/count@\d+", "tokens of this lag"),
    (r"importance/ratio", "importance weight before truncation, mean per token"),
    (r"importance/max", "largest importance weight before truncation"),
    (r"importance/truncated", "share of tokens whose weight was cut"),
    (r"mismatch_kl", "KL of the sampler against the learner on tokens of lag 0, nats"),
    (r"grpo/loss", "policy loss, mean per token"),
    (r"grpo/clipped", "share of tokens whose ratio was clipped"),
    (r"grpo/kl", "KL to the reference policy, nats per token"),
    (r"grpo/outside_support", "share of tokens that the learner's truncated law cannot emit"),
    (r"groups/used", "groups that the update learned from"),
    (r"groups/zero_variance", "groups left out, all of whose rewards were equal"),
    (r"groups/replaced", "groups without variance in whose place others were played"),
    (r"rollout/rows", "episodes an engine ran at once, mean over its busy time"),
    (r"time/step", "seconds of a step"),
    (r"time/generation", "busy seconds of the workers' engines"),
    (r"time/exposed_generation", "seconds the learner waited for rollouts"),
    (r"time/scoring", "seconds of grading"),
    (r"time/training", "seconds of the update"),
    (r"time/publication", "seconds of handing the new weights over"),
    (r"time/checkpoint", "seconds of saving a checkpoint"),
    (r"time/tokens_per_second", "tokens per second"),
    (r"generation_share", "share of the step that the learner waited for rollouts"),
)


def metrics_table(comparison: Comparison) -> Section:
    """Mean over each run, and the last value."""
    logs = [*comparison.inputs.runs, *comparison.inputs.heads]
    names = sorted({name for log in logs for name in log.metric_names})
    rows = tuple((Cell(text=name, small=meaning(name)), *(metric_cell(log, name) for log in logs)) for name in names)
    return Section(
        id="metrics",
        title="Every metric",
        short="Metrics",
        lead="Sums over sums of the whole run; in small print the last value. Point at a cell for the range.",
        tables=(
            Table(
                columns=("metric", *(log.name for log in logs)),
                rows=rows,
                can_filter=True,
            ),
        ),
    )


def meaning(name: str) -> str:
    return next((text for pattern, text in MEANINGS if re.fullmatch(pattern, name)), "")


def metric_cell(log: RunLog, name: str) -> Cell:
    series = log.series(name)
    if series is None:
        texts = [row.values[name] for row in log.rows if isinstance(row.values.get(name), str)]
        return Cell(text=str(texts[-1]) if texts else DASH)
    values_T = series.values_T
    hint = (
        f"first {general(values_T[0])}, last {general(values_T[-1])}, smallest {general(values_T.min())}, "
        f"largest {general(values_T.max())}, {len(series)} steps"
    )
    return Cell(text=general(series.pooled), small=last_value(series), hint=hint)


def last_value(series: Series) -> str:
    return f"last {general(float(series.values_T[-1]))}"


def provenance(comparison: Comparison) -> Section:
    """How every run was started and resumed."""
    rows = []
    for log in (*comparison.inputs.heads, *comparison.inputs.runs):
        for number, one in enumerate(log.provenance):
            versions = ", ".join(f"{name} {version}" for name, version in one.versions.items())
            rows.append(
                (
                    Cell(text=log.name if number == 0 else f"{log.name}, resumed"),
                    Cell(text=one.time[:16].replace("T", " ")),
                    Cell(text=one.command),
                    Cell(text=(one.revision or DASH)[:12] + ("+changes" if "+" in (one.revision or "") else "")),
                    Cell(text=str(one.seed) if one.seed is not None else DASH),
                    Cell(text=one.hardware),
                    Cell(text=versions),
                )
            )
    columns = ("run", "started (UTC)", "command", "revision", "seed", "hardware", "versions")
    shown = (Table(columns=columns, rows=tuple(rows), num_text_columns=len(columns)),) if rows else ()
    finished = [f"{log.name} {num_steps(log)}" for log in comparison.inputs.runs]
    return Section(
        id="provenance",
        title="How these runs were made",
        short="Provenance",
        lead=f"Steps with metrics: {', '.join(finished)}." if finished else "",
        tables=shown,
        notes=comparison.inputs.notes,
    )


def num_steps(log: RunLog) -> int:
    series = log.series(STEP)
    return len(series) if series is not None else len({row.step for row in log.rows})
