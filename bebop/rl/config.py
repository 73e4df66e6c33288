"""Settings of reinforcement learning (`bebop train-rl`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from bebop.config import ConfigModel
from bebop.core.sampling import MIN_TEMPERATURE, Sampling
from bebop.dashboards import DashboardConfig
from bebop.engines.embedded.options import MAX_DRAFT_TOKENS
from bebop.engines.embedded.rules import rule_named
from bebop.errors import UserError
from bebop.rl.learner_config import LearnerConfig, OnlineHeadConfig
from bebop.tasks.registry import TaskShare

EngineName = Literal["embedded", "vllm"]


class MTPConfig(ConfigModel):
    """What the head does in the run."""

    mode: Literal["none", "frozen", "online"] = "frozen"
    """``none`` samples without the head; ``frozen`` drafts with it as it is; ``online`` trains it beside the policy."""
    rule: str = "rejection"
    """How drafts are verified: rejection, block, coupled or target_only. All leave the policy's distribution as it
    is. With ``coupled`` the tokens are the same as without drafts."""
    k: int | Literal["auto"] = 3
    """Draft tokens a round; ``auto`` measures costs and acceptance while it runs, and differs from run to run."""

    draft_vocabulary: bool = True
    """Draft only the tokens that the checkpoint names for its head, if it names some; False drafts from all. A policy
    that learns to write others is drafted worse there."""
    online: OnlineHeadConfig = OnlineHeadConfig()
    """Used where the mode is ``online``."""

    @model_validator(mode="after")
    def _check(self) -> MTPConfig:
        try:
            rule_named(self.rule)
        except UserError as error:
            raise ValueError(str(error)) from error
        if self.k != "auto" and not 1 <= self.k <= MAX_DRAFT_TOKENS:
            raise ValueError(f"k is {self.k}; draft 1 to {MAX_DRAFT_TOKENS} tokens, or set mode=none")
        return self


class RolloutConfig(ConfigModel):
    """How and where the policy plays."""

    engine: EngineName = "embedded"
    workers: int = Field(default=1, ge=1)
    """Processes that play, each with an engine of its own."""
    rows: int = Field(default=48, ge=1)
    """Episodes an engine plays at once."""
    threads: int = Field(default=1, ge=1)
    """Threads of each worker's matrix products."""
    scoring_threads: int = Field(default=1, ge=0)
    """Threads of each worker that grade beside the generation; 0 grades between two rounds."""
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_turn_tokens: int = Field(default=192, ge=1)
    """A turn of the policy that is longer is cut off and earns nothing."""
    thinking: bool | None = None
    """Whether the policy thinks before it answers, where its chat template has a switch for that; none: as the template
    has it. Thoughts count towards the turn's tokens and are not graded."""
    dtype: str = "auto"
    """float32, bfloat16, or auto: what the device multiplies fastest."""
    device: str = "auto"
    max_context: int | None = Field(default=None, ge=2)
    """Positions that an episode may have; none: what the policy allows, for which vLLM must have room."""
    cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the keys and values of each vLLM, GiB; the embedded engine's cache grows with what it holds."""
    recompute_cache: bool = True
    """New weights run the contexts of episodes in progress again; False keeps the keys that older weights made."""
    stall_seconds: float = Field(default=600, gt=0)
    """A worker that has work and says nothing for so long is replaced."""
    max_restarts: int = Field(default=3, ge=0)
    """Replacements of a worker without a finished episode in between, after which the run stops."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


class AsyncConfig(ConfigModel):
    """How far sampling may run ahead of learning."""

    max_lag: int = Field(default=1, ge=0)
    """Updates between the weights that sampled a token and those that learn from it, at most. 0 is synchronous:
    sampling and learning take turns, and the run is a function of its settings."""


class EvaluationConfig(ConfigModel):
    """Reward on held-out problems, sampled like the rollouts; the learner waits for it."""

    every: int = Field(default=10, ge=0)
    """Steps between two evaluations, the first before any update and one after the last; 0 = none."""
    problems: int = Field(default=48, ge=1)
    """Of each task, the same ones every time."""


class TrainRL(ConfigModel):
    """`bebop train-rl`."""

    model_config = ConfigDict(serialize_by_alias=True)

    policy: str
    """Name or directory of the policy to train."""
    output: Path
    """Directory of the trained policy."""
    run: Path
    """Run directory: metrics, transcripts, checkpoints, provenance."""
    resume: Literal["auto", "never"] = "auto"
    """``auto`` goes on from the last checkpoint in ``run``; ``never`` refuses a directory that holds a run."""
    steps: int = Field(default=60, ge=1)
    seed: int = 0
    """Of problems and sampling."""
    tasks: tuple[TaskShare, ...] = (TaskShare(name="math"), TaskShare(name="code"), TaskShare(name="agent"))
    """They take turns, group by group, each as often as its share."""
    groups_per_step: int = Field(default=12, ge=1)
    """Problems per update."""
    group_size: int = Field(default=8, ge=2)
    """Attempts at each problem, whose rewards are compared with one another."""
    max_replaced: int = Field(default=0, ge=0)
    """Groups whose rewards are all equal teach nothing; for one update at most so many are replaced by further ones
    (DAPO's dynamic sampling). 0 replaces none: then updates late in a run have few groups to learn from."""
    rollout: RolloutConfig = RolloutConfig()
    mtp: MTPConfig = MTPConfig()
    asynchronous: AsyncConfig = Field(default=AsyncConfig(), alias="async")
    """Written ``async``."""
    learner: LearnerConfig = LearnerConfig()
    dtype: str = "auto"
    """What the learner's matrix products run in."""
    device: str = "auto"
    """Of the learner."""
    threads: int = Field(default=1, ge=1)
    """Of the learner's matrix products on a CPU."""
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint_every: int = Field(default=10, ge=1)
    transcripts_per_step: int = Field(default=3, ge=0)
    """Episodes written to ``transcripts.jsonl``, token by token."""
    dashboards: tuple[DashboardConfig, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> TrainRL:
        names = [one.name for one in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks are {', '.join(names) or 'none'}; name at least one, and each once")
        return self

    @property
    def max_lag(self) -> int:
        return self.asynchronous.max_lag
