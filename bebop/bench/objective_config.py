"""Settings of the comparison of objectives (``python -m bebop.bench.objectives``)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from bebop.config import ConfigModel
from bebop.core.curriculum import objective_named
from bebop.training.mtp_config import CollectConfig, UnrollConfig, WarmUpConfig
from bebop.training.teacher_forced import FATES


class ArmsConfig(ConfigModel):
    """What is compared; arms may be added to a comparison that stands."""

    objectives: tuple[str, ...] = ("ce", "kl", "e2e_tv")
    lrs: tuple[float, ...] = Field(default=(5e-4, 1.5e-3, 4.5e-3), min_length=1)
    """Learning rates that every objective is tried at; a single one is taken without tuning."""
    tuning_seed: int = 0
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    """Each decides the order of the data, of the common start as well as after it."""
    fresh: tuple[str, ...] = ("e2e_tv",)
    """Objectives that also train from a fresh head with a warm-up, for as many steps as start and arm have together."""
    without_warm_up: bool = False
    """Whether those train once more without the warm-up."""
    played: int = Field(default=0, ge=0)
    """Held-out problems of every task that the engine plays with the heads of the first seed; 0 = none."""

    @model_validator(mode="after")
    def _check(self) -> ArmsConfig:
        for name in (*self.objectives, *self.fresh):
            objective_named(name)
        for name in set(self.fresh) - set(self.objectives):
            raise ValueError(f"fresh has {name}, whose learning rate is not tuned; add it to objectives")
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed {self.tuning_seed} is among seeds; tune on another one")
        return self


class ObjectiveBench(ConfigModel):
    """One comparison. Everything but ``arms`` must stay as it was for a comparison to go on."""

    policy: str = "tiny"
    out: Path = Path("runs/objectives-tiny")
    arms: ArmsConfig = ArmsConfig()
    collect: CollectConfig = CollectConfig(num_episodes=750)
    """Rollouts on the train splits."""
    rollouts: Path | None = None
    """A ``rollouts.jsonl`` of a `bebop train-mtp` run with this policy and temperature, instead of the collection."""
    num_tuning: int = Field(default=120, ge=1)
    """Train rollouts that are set aside to choose learning rates by."""
    num_heldout: int = Field(default=240, ge=1)
    """Rollouts on the held-out splits, over all tasks."""
    temperature: float = Field(default=1.0, gt=0)
    start_steps: int = Field(default=100, ge=1)
    """Steps of ``kl`` from a fresh head to the common start."""
    start_lr: float = Field(default=2e-3, gt=0)
    steps: int = Field(default=100, ge=1)
    """Steps of every arm after the start."""
    from_fresh: bool = False
    """There is no common start but the seed's fresh head, from which every objective trains all the steps, those of
    the start included: ce and kl by themselves, the others, which a fresh head gives no gradient, after the warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps in which the learning rate rises."""
    per_step: int = Field(default=16, ge=1)
    micro_batch_tokens: int = Field(default=4096, ge=1)
    unroll: UnrollConfig = UnrollConfig(depths=4)
    drawn_tokens: int | None = Field(default=None, ge=1)
    """As in `loss.drawn_tokens` of `bebop train-mtp`; heads are judged on the whole vocabulary."""
    warm_up: WarmUpConfig = WarmUpConfig()
    """Of the arms that begin with a fresh head."""
    rules: tuple[str, ...] = tuple(FATES)
    """Verification rules that the held-out rollouts are judged by; rejection is one."""
    dtype: str = "auto"
    device: str = "auto"

    @model_validator(mode="after")
    def _check(self) -> ObjectiveBench:
        unknown = sorted(set(self.rules) - FATES.keys())
        if unknown or "rejection" not in self.rules:
            raise ValueError(f"rules must include rejection and be among {', '.join(FATES)}")
        return self
