"""Optional dashboards, the one module that imports them: TensorBoard, Weights & Biases, trackio.

The package is imported when a config asks for the dashboard; where it is missing, the error names the command.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from bebop.config import ConfigModel
from bebop.errors import UserError
from bebop.metrics import Dashboard

DashboardName = Literal["tensorboard", "wandb", "trackio"]


class DashboardConfig(ConfigModel):
    """Which dashboard a run reports to; the metrics file is written in any case."""

    kind: DashboardName
    project: str = "bebop"
    """Groups runs (wandb, trackio)."""
    run_name: str | None = None
    """Name of the run there; default: the name of its directory."""


class TensorBoard:
    """Event files under the run directory, for ``tensorboard --logdir RUN``."""

    def __init__(self, module: ModuleType, directory: Path) -> None:
        self._writer = module.SummaryWriter(str(directory / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class HostedRun:
    """A run of wandb, or of trackio, which has the same three calls."""

    def __init__(self, module: ModuleType, options: Mapping[str, Any]) -> None:
        self._run = module.init(**options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def open_dashboard(config: DashboardConfig, directory: Path) -> Dashboard:
    """Start reporting the run in ``directory``; ``UserError`` with the pip command where the package is missing."""
    return _OPENERS[config.kind](config, directory)


def _open_tensorboard(config: DashboardConfig, directory: Path) -> Dashboard:
    _require("tensorboard")
    return TensorBoard(importlib.import_module("torch.utils.tensorboard"), directory)


def _open_wandb(config: DashboardConfig, directory: Path) -> Dashboard:
    options = {"project": config.project, "name": config.run_name or directory.name, "dir": str(directory)}
    return HostedRun(_require("wandb"), options)


def _open_trackio(config: DashboardConfig, directory: Path) -> Dashboard:
    options = {"project": config.project, "name": config.run_name or directory.name}
    return HostedRun(_require("trackio"), options)


_OPENERS: dict[DashboardName, Callable[[DashboardConfig, Path], Dashboard]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
}


def _require(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"dashboard {package} needs a package that is not installed; run `pip install {package}` or name none"
        ) from error
