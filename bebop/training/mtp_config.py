"""Settings of the head's training (`bebop train-mtp`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from bebop.config import ConfigModel
from bebop.core.chains import TemperatureMixture
from bebop.core.curriculum import Curriculum, LossTerm, WarmUp
from bebop.core.sampling import MIN_TEMPERATURE
from bebop.dashboards import DashboardConfig
from bebop.tasks.registry import TaskChoice
from bebop.training.optimiser import OptimiserConfig
from bebop.training.unroll_attention import LAYOUTS


class CollectConfig(ConfigModel):
    """Completions that the policy samples itself, on the tasks' train splits."""

    tasks: tuple[TaskChoice, ...] = (TaskChoice(name="math"), TaskChoice(name="code"), TaskChoice(name="agent"))
    num_episodes: int = Field(default=1500, ge=1)
    """Over all tasks, which take turns."""
    max_turn_tokens: int = Field(default=256, ge=1)
    thinking: bool | None = None
    """Whether the policy thinks before it answers, where its chat template has a switch for that; none: as the template
    has it. Chats of a file are read the same way."""
    rows: int = Field(default=32, ge=1)
    """Episodes played at once."""
    seed: int = 0
    """Of the tasks' problems."""


class DataConfig(ConfigModel):
    """What the head learns from: tokens sampled by the policy at ``temperature``."""

    collect: CollectConfig = CollectConfig()
    file: Path | None = None
    """Rows ``{"tokens": [...], "is_model": [...]}`` or chats ``{"messages": [...]}`` as JSONL, Parquet or a saved
    `datasets` directory; takes the place of the collection."""
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE)
    """The rollouts' temperature, at which target and draft are compared; the whole vocabulary, no truncation."""
    max_tokens: int = Field(default=1024, ge=3)
    """Longer sequences are cut off there."""
    hidden: Literal["recompute", "memory", "disk"] = "memory"
    """The backbone's hidden states: computed in every step, or once and kept in memory or in the run directory."""
    per_step: int = Field(default=32, ge=1)
    """Sequences per update."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens (packed, with what padding is left) that are unrolled at once; gradients of the parts add up to one
    update."""
    seed: int = 0
    """Of the order of the sequences."""


class UnrollConfig(ConfigModel):
    """How far and with which attention the head is applied to its own output."""

    depths: int = Field(default=5, ge=1, le=16)
    """K in training."""
    deployed: int = Field(default=3, ge=1)
    """K in use; metrics report the accept length for it."""
    layout: str = "ttt"
    recompute: bool = False
    """Keep the inputs of each depth alone and run it again in the backward pass: less memory, a third more time."""

    @model_validator(mode="after")
    def _check(self) -> UnrollConfig:
        if self.depths < self.deployed:
            raise ValueError(
                f"depths is {self.depths} and deployed is {self.deployed}; train at least as deep as is drafted"
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is unknown; use one of {', '.join(LAYOUTS)}")
        return self


class TermConfig(ConfigModel):
    """One objective of a mixture."""

    objective: str
    weight: float = Field(default=1.0, ge=0)
    decay: float = Field(default=1.0, gt=0, le=1)
    """Depth k counts in proportion to decay^(k-1)."""

    def term(self) -> LossTerm:
        return LossTerm(objective=self.objective, weight=self.weight, decay=self.decay)


class WarmUpConfig(ConfigModel):
    """What trains first: an overlap loss has no gradient where nothing overlaps yet."""

    objective: str = "kl"
    until_overlap: float = Field(default=0.95, gt=0, lt=1)
    """Mean overlap over all depths and the last 20 steps or so from which the main objective takes over, for good. The
    mean counts steps before the first as 0, so that it passes 0.95 after sixty steps at the earliest."""
    until_share: float = Field(default=0.7, gt=0, lt=1)
    """Share of the steps after which it takes over in any case."""

    def record(self) -> WarmUp:
        """The core's record of it; ValueError for an unknown objective."""
        terms = (LossTerm(objective=self.objective),)
        return WarmUp(terms=terms, until_overlap=self.until_overlap, until_share=self.until_share)


class LossConfig(ConfigModel):
    """The objective and its schedule."""

    objective: str = "e2e_tv"
    """A name in ``bebop.core.objectives``. The weights of ``lk_lambda`` follow the overlap of each micro-batch."""
    extra: tuple[TermConfig, ...] = ()
    """Objectives added to it, such as a decayed ``tv`` to feed the late depths of ``e2e_tv``."""
    warm_up: WarmUpConfig | None = WarmUpConfig()
    more_temperatures: tuple[float, ...] = ()
    """Temperatures besides the rollouts' at which the same logits are compared, in equal shares."""
    drawn_tokens: int | None = Field(default=None, ge=1)
    """Compare the laws on the tokens found in the data and this many others, drawn anew for every step, which stand for
    all others: several times cheaper where the vocabulary is large. None compares them on the whole vocabulary."""
    fused: bool = True
    """False computes every logit at once: the slow reference."""

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        self.curriculum(1.0)
        if self.drawn_tokens is not None and self.more_temperatures:
            raise ValueError("drawn_tokens stands for others at one temperature; leave it or more_temperatures out")
        return self

    def curriculum(self, temperature: float) -> Curriculum:
        """The core's record of it; ValueError naming what is wrong."""
        return Curriculum(
            terms=(LossTerm(objective=self.objective), *(one.term() for one in self.extra)),
            warm_up=self.warm_up and self.warm_up.record(),
            mixture=TemperatureMixture(temperatures=(temperature, *self.more_temperatures)),
        )


class TrainMTP(ConfigModel):
    """`bebop train-mtp`."""

    policy: str
    """Name or directory of the policy whose head is trained; everything but the head stays as it is."""
    head: Literal["auto", "fresh"] = "auto"
    """The checkpoint's own head, or a new one."""
    output: Path
    """Directory of the policy with the trained head."""
    run: Path
    """Run directory: rollouts, metrics, checkpoints, provenance."""
    steps: int = Field(default=1000, ge=1)
    data: DataConfig = DataConfig()
    unroll: UnrollConfig = UnrollConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    draft_vocabulary: bool = True
    """Let the head draft only tokens found in the data, where these are few and new ones are rare."""
    dtype: str = "auto"
    """What the matrix products run in: float32, bfloat16, or auto; the head's own weights and the loss are float32."""
    device: str = "auto"
    checkpoint_every: int = Field(default=200, ge=1)
    log_every: int = Field(default=10, ge=1)
    dashboards: tuple[DashboardConfig, ...] = ()
