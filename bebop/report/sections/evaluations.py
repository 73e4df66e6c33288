"""The acceptance table of `bebop eval-mtp`: tasks x rules x heads."""

from __future__ import annotations

from collections.abc import Sequence

from bebop.report.analysis import Estimate
from bebop.report.charts import Axis, Chart, Trace, head_colour
from bebop.report.comparison import Comparison
from bebop.report.evaluations import Evaluation
from bebop.report.section import Cell, Missing, Section, Table
from bebop.report.wording import DASH, bracketed, listed, percent, plain


def evaluations(comparison: Comparison) -> Section | Missing:
    """Acceptance of every head, on every task, under every rule."""
    found = comparison.inputs.evaluations
    if not found:
        return Missing(
            title="Acceptance by task, rule and head", reason="give files of `bebop eval-mtp --json` to see them."
        )
    return Section(
        id="evaluations",
        title="Acceptance by task, rule and head",
        short="Heads",
        lead=evaluation_lead(found),
        charts=(length_chart(found),),
        tables=(acceptance_table(found), entropy_table(found)),
        notes=(
            "Played by the engine on the same problems; intervals resample episodes. Acceptance rate = accepted / "
            "drafted tokens, accept length = 1 + accepted per round. "
            + "; ".join(f"{one.name}: {settings(one)}" for one in found)
            + ".",
        ),
    )


def settings(one: Evaluation) -> str:
    names = {"temperature": "temperature", "k": "K =", "split": "split", "seed": "seed"}
    told = [f"{names[key]} {value}" for key, value in one.about.items()]
    return ", ".join([f"policy {one.policy}", *told])


def evaluation_lead(found: Sequence[Evaluation]) -> str:
    texts = []
    for one in found:
        for rule in one.rules:
            length = one.pooled(f"{rule}/accept_length")
            texts += [f"{one.name} with {rule} {length:.2f}"] if length is not None else []
    return f"Accept length over all tasks: {listed(texts)}."


def tasks_of(found: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(task for one in found for task in one.figures))


def rules_of(found: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(rule for one in found for rule in one.rules))


def length_chart(found: Sequence[Evaluation]) -> Chart:
    tasks, rules = tasks_of(found), rules_of(found)
    traces = []
    for rule in rules:
        for place, one in enumerate(found):
            pairs = [(task, one.get(task, f"{rule}/accept_length")) for task in tasks]
            known = [(task, estimate) for task, estimate in pairs if estimate is not None]
            if known:
                traces.append(
                    Trace(
                        name=one.name,
                        x=[task for task, _ in known],
                        y=[estimate.value for _, estimate in known],
                        colour=head_colour(place),
                        form="bars",
                        intervals=[estimate for _, estimate in known],
                        view=rule if len(rules) > 1 else None,
                    )
                )
    return Chart(
        id="evaluations",
        title="Accept length by task",
        caption="Tokens per round, with 95% intervals.",
        x=Axis(title="", categories=tuple(tasks)),
        y=Axis(title="accept length (tokens)", span=(0, None)),
        traces=tuple(traces),
        views=tuple(rules) if len(rules) > 1 else (),
    )


def acceptance_table(found: Sequence[Evaluation]) -> Table:
    """A row per task and rule, two columns per head."""
    columns = ["task", "rule"]
    for one in found:
        columns += [f"{one.name}: rate", f"{one.name}: length"]
    rows = []
    for task in tasks_of(found):
        for rule in rules_of(found):
            row = [Cell(text=task), Cell(text=rule)]
            for one in found:
                rate, length = one.get(task, f"{rule}/acceptance_rate"), one.get(task, f"{rule}/accept_length")
                row += [rate_cell(rate), length_cell(one, task, rule, length)]
            rows.append(tuple(row))
    return Table(columns=tuple(columns), rows=tuple(rows), num_text_columns=2)


def rate_cell(rate: Estimate | None) -> Cell:
    if rate is None:
        return Cell(text=DASH)
    return Cell(text=percent()(rate.value), small=bracketed(rate, percent()), share=rate.value)


def length_cell(one: Evaluation, task: str, rule: str, length: Estimate | None) -> Cell:
    expected = one.get(task, f"{rule}/estimated_round_length")
    hint = f"expected from the laws: {plain(2)(expected.value)}" if expected else ""
    cell = Cell.of(length, plain(2))
    return Cell(text=cell.text, small=cell.small, hint=hint)


def entropy_table(found: Sequence[Evaluation]) -> Table:
    """What the laws say, per task and head, at the first depth."""
    rows = tuple(
        (
            Cell(text=task),
            Cell(text=one.name),
            Cell.of(one.get(task, "target_entropy"), plain(2)),
            Cell.of(one.get(task, "draft_entropy@1"), plain(2)),
            Cell.of(one.get(task, "overlap@1"), percent()),
            Cell.of(one.get(task, "prefers_rejection@1"), percent()),
        )
        for task in tasks_of(found)
        for one in found
        if task in one.figures
    )
    columns = ("task", "head", "target entropy", "draft entropy", "overlap, depth 1", "rejection beats target-only")
    return Table(
        columns=columns, rows=rows, caption="At the first depth: nats, and shares of positions.", num_text_columns=2
    )
