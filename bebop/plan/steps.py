"""What faster generation does to a step of RL (docs/math.md)."""

from __future__ import annotations

from dataclasses import dataclass

from bebop.errors import UserError


def synchronous(generation_share: float, speed_up: float) -> float:
    """1 / (R/S + 1 - R): generation and learning take turns, and generation is the share R of a step."""
    check_share(generation_share)
    return 1 / (generation_share / speed_up + 1 - generation_share)


def asynchronous(generation_share: float, speed_up: float) -> float:
    """max(R, 1 - R) / max(R/S, 1 - R): both run beside each other, and a step takes as long as the longer of them.

    R is the share that generation has of a *synchronous* step. Only exposed generation is won: once learning takes
    longer, faster generation gains nothing.
    """
    check_share(generation_share)
    learning = 1 - generation_share
    return max(generation_share, learning) / max(generation_share / speed_up, learning)


def check_share(generation_share: float) -> None:
    if not 0 <= generation_share <= 1:
        raise UserError(f"the generation share is {generation_share}; it is a part of the step, between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedStep:
    """Mean seconds of a step without speculation, from the log of a run."""

    step: float
    exposed: float
    """While the learner waited for rollouts."""
    generation: float
    """Busy time of a worker's engine; in a synchronous run this is exposed, too."""

    def with_speed_up(self, speed_up: float) -> float:
        """Seconds of the step when generation is so much faster; the learner waits less, at best not at all."""
        saved = min(self.exposed, self.generation * (1 - 1 / speed_up))
        return self.step - saved

    @property
    def synchronous_share(self) -> float:
        """Share R that generation would have of a synchronous step."""
        learning = max(0.0, self.step - self.exposed)
        return self.generation / (self.generation + learning)
