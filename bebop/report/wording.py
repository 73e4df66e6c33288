"""Numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Callable

from bebop.report.analysis import Estimate

DASH = "–"
"""Stands for a number that is not known."""

Spell = Callable[[float], str]


def plain(digits: int) -> Spell:
    """Fixed digits, with a true minus sign."""
    return lambda value: known(value, lambda one: f"{one:,.{digits}f}".replace("-", "−"))


def signed(digits: int) -> Spell:
    return lambda value: known(value, lambda one: f"{one:+,.{digits}f}".replace("-", "−"))


def percent(digits: int = 1) -> Spell:
    return lambda value: known(value, lambda one: f"{100 * one:.{digits}f}%".replace("-", "−"))


def times(value: float) -> str:
    """A ratio."""
    return known(value, lambda one: f"{one:.2f}×")


def seconds(value: float) -> str:
    """In the unit that fits."""

    def spelled(one: float) -> str:
        if abs(one) >= 5400:
            return f"{one / 3600:.1f} h"
        if abs(one) >= 100:
            return f"{one / 60:.1f} min"
        return f"{one:.2f} s" if abs(one) < 10 else f"{one:.1f} s"

    return known(value, spelled)


def count(value: float) -> str:
    """A whole number; ``∞`` where there is no end."""
    return "∞" if value == math.inf else known(value, lambda one: f"{one:,.0f}".replace("-", "−"))


def steps_count(value: float) -> str:
    text = count(value)
    return text if text == DASH else f"{text} steps"


def general(value: float) -> str:
    """Any number in about four digits."""

    def spelled(one: float) -> str:
        if one == round(one) and abs(one) < 1e6:
            return f"{one:,.0f}"
        if 1e-3 <= abs(one) < 1e6:
            digits = max(0, 3 - math.floor(math.log10(abs(one))))
            return f"{one:,.{min(digits, 6)}f}"
        return f"{one:.2e}"

    return known(value, lambda one: spelled(one).replace("-", "−"))


def known(value: float, spell: Spell) -> str:
    return spell(value) if math.isfinite(value) else DASH


def within(estimate: Estimate | None, spell: Spell) -> str:
    """``1.52× [1.44×, 1.60×]``, without brackets where there is no interval."""
    if estimate is None:
        return DASH
    return f"{spell(estimate.value)} {bracketed(estimate, spell)}".rstrip()


def bracketed(estimate: Estimate, spell: Spell) -> str:
    """The interval alone; empty where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    return f"[{spell(estimate.low)}, {spell(estimate.high)}]"


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
