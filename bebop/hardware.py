"""What this machine is, in words: processor and its matrix instructions, memory, accelerators."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# Flags of /proc/cpuinfo under which bf16 matrix products run in hardware on a CPU.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Processor:
    """The CPU as this process may use it."""

    name: str
    num_cores: int
    """Cores this process may run on."""
    features: tuple[str, ...]
    """Of avx2, avx512f, avx512_bf16, amx_bf16 and ARM's bf16: those present."""

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 matrix products run in hardware."""
        return any(flag in self.features for flag in _BF16_FLAGS)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Read the processor's name and features; without ``cpuinfo`` the features are unknown, hence empty."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    fields = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    wanted = ("avx2", "avx512f", *_BF16_FLAGS)
    return Processor(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        num_cores=num_usable_cores(),
        features=tuple(flag for flag in wanted if flag in flags),
    )


def num_usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float:
    """Physical memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def accelerators() -> tuple[str, ...]:
    """Names of the accelerators that PyTorch can use, one per device."""
    import torch

    if torch.cuda.is_available():
        return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return ("Apple GPU (mps)",) if torch.backends.mps.is_available() else ()


def hardware_line() -> str:
    """One line for provenance files and tables of results."""
    cpu = processor()
    parts = [f"{cpu.num_cores} cores of {cpu.name}", f"{memory_gib():.0f} GiB"]
    names = accelerators()
    if names:
        parts.append(f"{len(names)} x {names[0]}")
    return ", ".join(parts)
