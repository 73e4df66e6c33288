"""When a head that is otherwise left alone has fallen behind its policy."""

from __future__ import annotations

import torch
from torch import nn

from bebop.engines.base import DraftStats
from bebop.metrics import Mean
from bebop.rl.learner_config import DriftConfig


class DriftTrigger:
    """Compares accepted drafts per round with those of the first updates; on below one threshold, off above another."""

    def __init__(self, config: DriftConfig) -> None:
        self._config = config
        # A tensor, so that a checkpoint holds it: [rounds, accepted] of the last updates, oldest first, then of the
        # first ones together, then [updates seen, whether it is on].
        self.state = nn.Parameter(torch.zeros(config.window + 2, 2, dtype=torch.float64), requires_grad=False)

    @property
    def is_on(self) -> bool:
        return bool(self.state[-1, 1])

    def observe(self, drafts: DraftStats) -> bool:
        """Count the rounds of an update and say whether the head is to be trained in it.

        Rounds without drafts say nothing; until ``window`` updates were seen the answer is no.
        """
        num_rounds = drafts.drafted[0] if drafts.drafted else 0
        if num_rounds == 0:
            return self.is_on
        window = self._config.window
        seen = torch.tensor([num_rounds, drafts.num_accepted], dtype=torch.float64)
        self.state[:window] = torch.cat([self.state[1:window], seen[None]])
        if self.state[-1, 0] < window:
            self.state[window] += seen
            self.state[-1, 0] += 1
            return False
        share_lost = 1 - _per_round(self.state[:window].sum(0)) / _per_round(self.state[window])
        threshold = self._config.tolerance * (self._config.recovered if self.is_on else 1.0)
        self.state[-1, 1] = float(share_lost > threshold)
        return self.is_on


def _per_round(rounds_and_accepted: torch.Tensor) -> float:
    num_rounds, num_accepted = rounds_and_accepted.tolist()
    return Mean(num_accepted, num_rounds).value or 1e-9
