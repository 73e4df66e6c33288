"""Objectives as data: weighted mixtures, decayed per-depth terms, temperatures, and a warm-up for a fresh head.

The gradient of TV vanishes where nothing overlaps yet (its L1 norm is 2S(1-S) <= 2 alpha) and the end-to-end product
starves late depths while early ones are poor. A fresh head therefore starts on ``kl`` or ``lk_lambda`` until the mean
overlap passes a threshold or a share of the steps is over, and a decayed per-depth term can be mixed into an end-to-end
one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bebop.core.chains import SINGLE_TEMPERATURE, TemperatureMixture
from bebop.core.objectives import OBJECTIVES, Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerm:
    """One objective of a mixture."""

    objective: str = "e2e_tv"
    """A name in ``OBJECTIVES``."""
    weight: float = 1.0
    decay: float = 1.0
    """Depth k counts in proportion to decay^(k-1), times what the objective itself gives it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """What trains until the head overlaps enough with the target."""

    terms: tuple[LossTerm, ...] = (LossTerm(objective="kl"),)
    until_overlap: float = 0.95
    """Running mean overlap of all counted (chain, depth) rows, risen from 0, at which the main objective takes over for
    good. Handing over early costs more than handing over late: the overlap's gradient is small where the overlap is."""
    until_share: float = 0.7
    """Share of the training's steps after which it takes over in any case."""

    def __post_init__(self) -> None:
        for name in ("until_overlap", "until_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curriculum:
    """The whole loss of a training run. Its state, warm or not and the overlap, belongs to the trainer's checkpoint."""

    terms: tuple[LossTerm, ...] = (LossTerm(),)
    warm_up: WarmUp | None = WarmUp()
    """None = the main objective from the first step, for a head that is already trained."""
    mixture: TemperatureMixture = SINGLE_TEMPERATURE

    def __post_init__(self) -> None:
        combine(self.terms)
        if self.warm_up is not None:
            combine(self.warm_up.terms)

    def objective(self, *, is_warm: bool) -> Objective:
        """The objective of the next step."""
        return combine(self.terms if is_warm or self.warm_up is None else self.warm_up.terms)

    def becomes_warm(self, mean_overlap: float, share_done: float) -> bool:
        """Whether the warm-up ends with this much overlap after this share of the steps."""
        warm_up = self.warm_up
        return warm_up is None or mean_overlap >= warm_up.until_overlap or share_done >= warm_up.until_share


def combine(terms: Sequence[LossTerm]) -> Objective:
    """The weighted sum of named objectives as one objective, evaluated in one sweep."""
    if not terms:
        raise ValueError("a loss needs at least one term, such as LossTerm(objective='e2e_tv')")
    parts = [
        replace(part, weight=part.weight * term.weight, decay=part.decay * term.decay)
        for term in terms
        for part in objective_named(term.objective).parts
    ]
    return Objective(parts=tuple(parts))


def objective_named(name: str) -> Objective:
    """Look a name up; ValueError names the nearest one."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    nearest = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0.0)[0]
    raise ValueError(f"no objective is named {name!r}; did you mean {nearest!r}? There are {', '.join(OBJECTIVES)}")
