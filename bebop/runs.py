"""Run directories: a folder that says what was run, with which settings, on what, and what came out.

::

    config.yaml       the resolved configuration
    provenance.json   command, revision, versions, seed, hardware, time; one more entry per resumption
    metrics.jsonl     rows of bebop.metrics
    checkpoints/      one directory per saved step
"""

import json
import shlex
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import bebop
from bebop.config import ConfigModel, different_settings, load_config, to_yaml
from bebop.errors import UserError
from bebop.files import atomic_write
from bebop.hardware import hardware_line
from bebop.metrics import Dashboard, Mean, MetricsRow, MetricsWriter, read_metrics

Model = TypeVar("Model", bound=ConfigModel)

LOCK = ".lock"
"""File in a run directory that the process working on the run holds locked."""

_LEFT_BY_A_START = frozenset({"config.yaml", "provenance.json", "workers", LOCK})

_VERSIONED = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a result came from."""

    command: str
    """The command line, quoted for a shell."""
    revision: str | None
    """Commit of the source tree, with ``+changes`` where files differ from it; None outside a checkout."""
    versions: dict[str, str]
    seed: int | None
    hardware: str
    time: str
    """Start, UTC, ISO 8601."""

    @classmethod
    def of(cls, command: Sequence[str], seed: int | None) -> "Provenance":
        """Describe this process, this machine and this moment."""
        return cls(
            command=shlex.join(command),
            revision=source_revision(),
            versions=versions(),
            seed=seed,
            hardware=hardware_line(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run on disk. ``create`` starts one, ``open`` finds one again."""

    path: Path

    @classmethod
    def create(
        cls, path: str | Path, config: ConfigModel, command: Sequence[str], *, seed: int | None = None
    ) -> "RunDirectory":
        """Make the directory and write what was asked for, at once; ``UserError`` where it already holds something."""
        run = cls(Path(path))
        if run.holds_something:
            raise UserError(f"{run.path} already holds something; name another run directory, resume it or delete it")
        run.path.mkdir(parents=True, exist_ok=True)
        run._write_provenance([Provenance.of(command, seed)])
        # Last, as it is what makes a folder a run.
        atomic_write(run.config_path, to_yaml(config))
        return run

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        config: ConfigModel,
        command: Sequence[str],
        *,
        seed: int | None = None,
        may_differ: Collection[str] = (),
    ) -> "RunDirectory":
        """A new run, or the one at ``path`` if it was started with the same settings; else ``UserError``.

        Settings named in ``may_differ`` (dotted, or a whole section) are taken from ``config`` from now on. A run that
        failed before its first step is started anew with any settings.
        """
        run = cls(Path(path))
        if not run.holds_something:
            return cls.create(path, config, command, seed=seed)
        before = cls.open(path).config(type(config))
        changed = different_settings(before, config, may_differ)
        if changed:
            listed = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise UserError(
                f"{path} holds a run with other settings ({listed}); name another run directory or delete it"
            )
        if before != config:
            atomic_write(run.config_path, to_yaml(config))
        run.record_resumption(command, seed=seed)
        return run

    @property
    def holds_something(self) -> bool:
        """Whether there is more than what a start leaves that failed before its first step."""
        if not self.path.exists():
            return False
        return not self.path.is_dir() or not all(_is_left_by_a_start(one.name) for one in self.path.iterdir())

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """The run at ``path``; ``UserError`` where there is none."""
        run = cls(Path(path))
        if not run.config_path.is_file():
            raise UserError(f"{path} is not a run directory (it has no config.yaml); name the directory of a run")
        return run

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    def config(self, model: type[Model]) -> Model:
        """The resolved configuration the run was started with."""
        return load_config(model, self.config_path)

    def provenance(self) -> list[Provenance]:
        """How the run was started, then how it was resumed, oldest first."""
        path = self.path / "provenance.json"
        try:
            return [Provenance(**record) for record in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a provenance file of this program; restore or delete the run") from error

    def record_resumption(self, command: Sequence[str], *, seed: int | None = None) -> None:
        """Add how and on what the run goes on."""
        self._write_provenance([*self.provenance(), Provenance.of(command, seed)])

    def metrics_writer(self, *, keep_through: int | None = None, dashboards: Sequence[Dashboard] = ()) -> MetricsWriter:
        """Append to ``metrics.jsonl``; see ``MetricsWriter``."""
        return MetricsWriter(self.metrics_path, keep_through=keep_through, dashboards=dashboards)

    def metrics(self) -> list[MetricsRow]:
        """The rows written so far."""
        return read_metrics(self.metrics_path) if self.metrics_path.exists() else []

    def _write_provenance(self, records: Sequence[Provenance]) -> None:
        text = json.dumps([asdict(record) for record in records], indent=2, ensure_ascii=False)
        atomic_write(self.path / "provenance.json", text + "\n")


def _is_left_by_a_start(name: str) -> bool:
    """Also of one that was killed while it wrote (``atomic_file``)."""
    return name in _LEFT_BY_A_START or (name.startswith(".") and name.endswith(".part"))


def versions() -> dict[str, str]:
    """Package -> version for Bebop and what decides its numbers."""
    return {"bebop": bebop.__version__} | {name: metadata.version(name) for name in _VERSIONED}


def source_revision(package: Path = Path(bebop.__file__).parent) -> str | None:
    """Commit of the checkout whose root holds ``package``, or None: a package installed elsewhere has none."""
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != package.resolve().parent:
        return None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", str(package))
    return f"{commit}+changes" if changed else commit


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


__all__ = [
    "Mean",
    "MetricsRow",
    "MetricsWriter",
    "Provenance",
    "RunDirectory",
    "read_metrics",
    "source_revision",
    "versions",
]
