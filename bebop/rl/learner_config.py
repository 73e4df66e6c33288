"""Settings of the learner: the loss, what is filtered, the optimiser; and of a head that is trained beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bebop.config import ConfigModel
from bebop.core.curriculum import Curriculum, LossTerm
from bebop.core.grpo import ClipSettings
from bebop.training.mtp_config import TermConfig
from bebop.training.optimiser import OptimiserConfig
from bebop.training.unroll_attention import LAYOUTS


class LearnerConfig(ConfigModel):
    """GRPO: how groups of rollouts become an update of the policy."""

    clip_low: float = Field(default=0.2, gt=0, le=1)
    """The ratio of current to proximal probability has no gradient below 1 - clip_low, for negative advantages."""
    clip_high: float = Field(default=0.28, gt=0)
    """Nor above 1 + clip_high, for positive ones; more than clip_low keeps exploration alive (DAPO, arXiv 2503.14476).
    With one minibatch the ratio is 1 and neither binds."""
    ratio: Literal["token", "sequence"] = "token"
    """``sequence``: GSPO's ratio, the geometric mean over a rollout."""
    mean: Literal["token", "rollout"] = "token"
    """Over all tokens of an update alike, or over rollouts of the mean over their tokens."""
    max_importance: float = Field(default=2.0, ge=1)
    """Truncation of the importance weight that corrects for lag: min(exp(proximal - behaviour), max_importance)."""
    clip_against: Literal["proximal", "behaviour"] = "proximal"
    """``behaviour`` clips the ratio to the sampler's log-probs itself, without an importance weight, as GRPO began."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Of the KL to the policy that the run started with; above 0 it costs one more forward."""
    normalise_advantages: bool = True
    """False leaves the group's standard deviation away (Dr. GRPO)."""
    drop_zero_advantages: bool = True
    """Leave out rollouts without an advantage, which changes no gradient; with a KL weight they are kept."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps per update, each on its share of every group; above 1, proximal log-probs cost one forward."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens that go through the backbone at once, prompts counted once; the gradient does not depend on it."""
    share_prompts: bool = True
    """Attempts at one problem run their prompt through the backbone once. False runs every rollout whole: the slow
    reference, with the same result, which backbones with recurrent layers use in any case."""
    optimiser: OptimiserConfig = OptimiserConfig(
        lr=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0
    )

    @property
    def clip(self) -> ClipSettings:
        return ClipSettings(
            low=self.clip_low,
            high=self.clip_high,
            max_importance=self.max_importance,
            ratio=self.ratio,
            kl_weight=self.kl_weight,
        )


class DriftConfig(ConfigModel):
    """When a head that is otherwise left alone is trained."""

    tolerance: float = Field(default=0.05, gt=0, lt=1)
    """Training starts when accepted drafts per round fall this share below what they were at the start."""
    recovered: float = Field(default=0.5, ge=0, le=1)
    """And ends when they are back within this share of the tolerance."""
    window: int = Field(default=5, ge=1)
    """Updates that are averaged, at the start and from then on."""


class OnlineHeadConfig(ConfigModel):
    """Training of the MTP head beside the policy, on the same rollouts and the same forward of the backbone."""

    objective: str = "e2e_tv"
    """A name in ``bebop.core.objectives``."""
    extra: tuple[TermConfig, ...] = ()
    """Objectives added to it."""
    depths: int = Field(default=3, ge=1, le=16)
    """How often the head is applied to its own output."""
    layout: str = "ttt"
    """Attention of the unroll: ttt, plain or kvshare."""
    optimiser: OptimiserConfig = OptimiserConfig(
        lr=3e-4, schedule="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0
    )
    """The head's own: its gradient is clipped by its own norm and never mixes with the policy's."""
    drift: DriftConfig | None = None
    """None trains in every update; otherwise only while acceptance has drifted."""

    @model_validator(mode="after")
    def _check(self) -> OnlineHeadConfig:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is unknown; use one of {', '.join(LAYOUTS)}")
        self.curriculum  # noqa: B018  (raises)
        return self

    @property
    def curriculum(self) -> Curriculum:
        """The core's record of it; ValueError for an unknown objective."""
        terms = (LossTerm(objective=self.objective), *(one.term() for one in self.extra))
        return Curriculum(terms=terms, warm_up=None)
