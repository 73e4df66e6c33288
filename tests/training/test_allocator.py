"""A training process keeps freed tensors, so that they cost no page faults, and few of oneDNN's kernels."""

import os
import platform
import subprocess
import sys

import pytest
import torch

FAULTS = """
import resource, sys, torch
from bebop.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 * 2**20).add_(1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[8:]))
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_of_a_freed_tensor_is_used_again() -> None:
    assert faults("keep") < 10 < faults("leave")


KERNELS = """
import ctypes, os, subprocess, sys
import torch
from bebop.training.allocator import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
show = [sys.executable, "-c", "import os; print(os.environ.get('ONEDNN_PRIMITIVE_CACHE_CAPACITY'))"]
print(subprocess.run(show, env=dict(os.environ), capture_output=True, text=True).stdout.strip())

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c mapped d e used free f".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap
for width in range(64, 364):
    torch.ones(width, width, dtype=torch.bfloat16) @ torch.ones(width, 192, dtype=torch.bfloat16)
print(libc.mallinfo2().used + libc.mallinfo2().mapped)
"""


def kernels(how: str) -> tuple[str, int]:
    """What a child with our environment sees, and bytes in use after 300 products of as many shapes."""
    done = subprocess.run(
        [sys.executable, "-c", KERNELS, how], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    seen, used = done.stdout.split()
    return seen, int(used)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
def test_few_kernels_stay_and_children_do_not_hear_of_it() -> None:
    (seen, few), (_, many) = kernels("few"), kernels("all")
    assert seen == "None"
    assert few + 10_000_000 < many
