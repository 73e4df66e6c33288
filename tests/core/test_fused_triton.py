"""The Triton kernels equal the plain loss under Triton's interpreter, and compile for GPUs without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
CASES = [
    *(f"random/{name}" for name in ("ce", "kl", "reverse_kl", "e2e_tv_path", "lk_lambda")),
    *(f"{regime}/e2e_tv" for regime in ("saturated", "equal", "some_ties", "one_hot_target", "no_overlap", "masked")),
    *("warm_and_cold/e2e_tv", "single_depth/e2e_tv", "warm_and_cold/mixed"),
]


def run(*arguments: str | Path, **environment: str) -> str:
    """A fresh interpreter: Triton reads its environment once, at its first import."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)]), **environment}
    finished = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


@pytest.fixture(scope="module")
def differences() -> dict[str, str]:
    return json.loads(run(HERE / "triton_parity.py", CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="1"))


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_equal_plain_in_value_gradient_and_statistics(differences, case):
    assert differences[case] == ""


def test_every_case_that_ran_is_asked_for(differences):
    assert sorted(differences) == sorted(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path, capability):
    written = tmp_path / "build.json"
    run("-m", "bebop.bench.triton_build", "--capability", str(capability), "--json", written, TRITON_INTERPRET="0")
    built = json.loads(written.read_text())
    assert [kernel["kernel"] for kernel in built] == ["log_sum_exp_kernel", "statistics_kernel", "gradient_kernel"]
    assert all(kernel["cubin_bytes"] > 0 for kernel in built)
