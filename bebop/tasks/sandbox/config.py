"""Limits of the sandbox."""

from pydantic import Field

from bebop.config import ConfigModel


class SandboxConfig(ConfigModel):
    """What one run of model-written code may use: at worst ``max_processes * memory_mb + scratch_mb`` of memory."""

    wall_s: float = Field(default=5.0, gt=0)
    """Seconds from start to end."""
    cpu_s: int = Field(default=2, ge=1)
    """CPU seconds of each process."""
    memory_mb: int = Field(default=256, ge=64)
    """Address space of each process, MiB; Python alone takes about 30."""
    scratch_mb: int = Field(default=16, ge=1)
    """Size of the scratch directory, which is in memory, MiB."""
    output_kb: int = Field(default=256, ge=1)
    """Bytes each of stdout, stderr and the returned values may take, KiB."""
    max_processes: int = Field(default=8, ge=1)
    """Processes and threads at a time."""
    allow_unisolated: bool = False
    """Run on a machine that cannot isolate, with resource limits alone: the code can read and delete your files."""

    def limits(self) -> dict[str, int | float]:
        """In the units of the jail's messages."""
        return {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "memory_bytes": self.memory_mb << 20,
            "scratch_bytes": self.scratch_mb << 20,
            "output_bytes": self.output_kb << 10,
            "max_processes": self.max_processes,
        }
