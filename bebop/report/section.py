"""What a section of the report consists of, as data."""

from __future__ import annotations

from dataclasses import dataclass

from bebop.report.analysis import Estimate
from bebop.report.charts import Chart
from bebop.report.wording import DASH, Spell, bracketed


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A table cell."""

    text: str
    small: str = ""
    """A second line in small print, such as an interval."""
    hint: str = ""
    """Shown where the cell is pointed at."""
    share: float | None = None
    """0 to 1: how far the cell is shaded."""
    colour: str | None = None
    """A dot of this colour before the text."""

    @classmethod
    def of(cls, estimate: Estimate | None, spell: Spell) -> Cell:
        """The value, with its interval in small print; a dash for None."""
        if estimate is None:
            return cls(text=DASH)
        return cls(text=spell(estimate.value), small=bracketed(estimate, spell))


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """``rows`` have as many cells as ``columns`` has names; the first column is text, the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    can_filter: bool = False
    """Whether a field to search the first column is offered."""
    num_text_columns: int = 1

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), f"ragged table with columns {self.columns}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, what is to be seen, and the pictures and tables that show it."""

    id: str
    title: str
    short: str
    """For the page's navigation."""
    lead: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """How the figures were made, and what is missing in part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """A section that could not be made."""

    title: str
    reason: str
    """A sentence, with what would mend it."""
