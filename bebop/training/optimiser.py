"""Optimisers and learning-rate schedules, as configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bebop.config import ConfigModel
from bebop.training.muon import Muon
from bebop.training.sharding import whole_tensor

STEP_SIZES = ("lr", "max_grad_norm")
"""Settings of an ``OptimiserConfig`` that every update reads anew: a run can go on with others."""


class OptimiserConfig(ConfigModel):
    """An optimiser with warm-up, a schedule and a clip."""

    name: Literal["adamw", "muon"] = "adamw"
    """``muon`` needs about half the steps to train a small policy from nothing; see ``training.muon``."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """What follows the warm-up; linear and cosine fall to ``final_share``."""
    warmup_steps: int = Field(default=50, ge=0)
    final_share: float = Field(default=0.05, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak."""
    weight_decay: float = Field(default=0.01, ge=0)
    """On matrices alone; norms and biases are never decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)


def open_optimiser(named: Iterable[tuple[str, nn.Parameter]], config: OptimiserConfig) -> torch.optim.Optimizer:
    """The configured optimiser over the named parameters that want a gradient."""
    wanted = {name: one for name, one in named if one.requires_grad}
    if config.name == "adamw":
        return adamw(wanted.values(), config)
    is_matrix = {name: one.dim() == 2 and "embed" not in name and "lm_head" not in name for name, one in wanted.items()}
    matrices = [one for name, one in wanted.items() if is_matrix[name]]
    others = [one for name, one in wanted.items() if not is_matrix[name]]
    return Muon(matrices, others, lr=config.lr, weight_decay=config.weight_decay)


def adamw(parameters: Iterable[Tensor], config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that want a gradient."""
    wanted = [one for one in parameters if one.requires_grad]
    groups = [
        {"params": [one for one in wanted if one.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [one for one in wanted if one.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True
    )


def learning_rate(step: int, num_steps: int, config: OptimiserConfig) -> float:
    """The rate of update number ``step`` (from 0) of ``num_steps``."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.final_share + (1 - config.final_share) * left)


def update(optimiser: torch.optim.Optimizer, lr: float, max_grad_norm: float) -> float:
    """One clipped update at learning rate ``lr``; returns the gradient's norm before the clip.

    A norm that is not finite is returned for the caller to report, and the parameters stay as they were.
    """
    parameters = [one for group in optimiser.param_groups for one in group["params"]]
    norm = float(whole_tensor(nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
    for group in optimiser.param_groups:
        group["lr"] = lr
    if math.isfinite(norm):
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm
