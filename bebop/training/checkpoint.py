"""Where a training run stands: weights, optimiser state and step, as safetensors, written whole or not at all.

Everything random in training is a function of (seed, step), so no generator state needs saving: a run resumed
from here continues bit for bit in float32 on one machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bebop.errors import UserError
from bebop.files import atomic_directory
from bebop.training.sharding import laid_like, whole_tensor

WEIGHTS, OPTIMISER, STATE = "weights.safetensors", "optimiser.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a checkpoint holds the state of."""

    parameters: Mapping[str, nn.Parameter]
    """Name -> parameter that is trained."""
    optimiser: torch.optim.Optimizer
    more_optimisers: tuple[torch.optim.Optimizer, ...] = ()
    """Of parameters that ``optimiser`` does not update."""

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state, by name, that the parameter's optimiser keeps; empty for one that none of them updates."""
        for optimiser in (self.optimiser, *self.more_optimisers):
            if any(parameter is one for group in optimiser.param_groups for one in group["params"]):
                return optimiser.state[parameter]
        return {}


def save_checkpoint(
    directory: Path, step: int, trained: Trained, *, position: int | None = None, writes: bool = True
) -> Path:
    """Write ``directory/step-N`` after ``step`` updates and delete what it replaces.

    ``position``: where the data goes on, if the step does not say. Of processes that share a sharded model all must
    call and one ``writes``.
    """
    target = directory / f"step-{step:08d}"
    weights = {name: whole_tensor(one).contiguous() for name, one in trained.parameters.items()}
    moments = optimiser_tensors(trained)
    if not writes:
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target) as part:
        save_file(weights, part / WEIGHTS)
        save_file(moments, part / OPTIMISER)
        (part / STATE).write_text(json.dumps({"step": step, "position": position}))
    for older in saved_steps(directory):
        if older != target:
            shutil.rmtree(older)
    return target


def load_latest(directory: Path, trained: Trained) -> int:
    """Restore the newest checkpoint into ``trained`` and return the number of updates it has had; 0 without one."""
    found = saved_steps(directory)
    if not found:
        return 0
    try:
        weights, moments = load_file(found[-1] / WEIGHTS), load_file(found[-1] / OPTIMISER)
        step = int(json.loads((found[-1] / STATE).read_text())["step"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the checkpoint {found[-1]} is damaged ({error}); delete it to go on without it") from error
    restore(trained, weights, moments)
    return step


def saved_position(directory: Path) -> int | None:
    """Where the data goes on from the newest checkpoint; None where its step says it, or without a checkpoint."""
    found = saved_steps(directory)
    return json.loads((found[-1] / STATE).read_text()).get("position") if found else None


def saved_steps(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(directory.glob("step-*"))


def optimiser_tensors(trained: Trained) -> dict[str, Tensor]:
    """Every tensor of the optimiser's state as ``parameter name/state name``."""
    return {
        f"{name}/{key}": whole_tensor(value).contiguous()
        for name, parameter in trained.parameters.items()
        for key, value in trained.state_of(parameter).items()
    }


@torch.no_grad()
def restore(trained: Trained, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
    """Copy weights and optimiser state into place; UserError where the checkpoint is of another model."""
    wanted = {name: one.shape for name, one in trained.parameters.items()}
    held = {name: one.shape for name, one in weights.items()}
    if wanted != held:
        names = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
        raise UserError(
            f"the checkpoint belongs to another model or another mtp.mode: {names[0]} is not what is trained now; "
            "name another run directory or the policy and the mode it began with"
        )
    for name, parameter in trained.parameters.items():
        parameter.copy_(laid_like(weights[name], parameter))
    for name, value in moments.items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = trained.parameters[parameter_name]
        trained.state_of(parameter)[key] = laid_like(value, parameter)
