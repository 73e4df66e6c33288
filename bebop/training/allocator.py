"""What a training process keeps of the memory it has used: freed tensors, and few compiled kernels.

glibc maps every tensor above some megabytes anew and unmaps it when it is freed, so that each step touches its
activations' pages for the first time, and the kernel clears them: about a fifth of a training step of a small head on
a CPU. A training step needs what the step before it needed, so nothing is gained by giving memory back.

oneDNN compiles a kernel for every shape of a product and keeps the last 1,024 of them, about 0.4 MB each. The shapes of
an update rarely return, and kernels that stay lie between activations that go, so that the heap grows with every step:
`tiny` in bfloat16 was at 5.6 GB after 170 updates, where 64 kernels leave it at 2.5 and take no longer.
"""

from __future__ import annotations

import ctypes
import platform

# Options of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4

_KERNELS = (b"ONEDNN_PRIMITIVE_CACHE_CAPACITY", b"64")


def keep_freed_memory() -> bool:
    """Serve large tensors from the heap and never shrink it, from now on; False where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(option, value) for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    )


def keep_few_kernels() -> None:
    """Bound oneDNN's cache, in this process alone and before its first product, unless the user has set it.

    ``os.environ`` is left as it is, for children that generate: their shapes do return.
    """
    ctypes.CDLL(None).setenv(*_KERNELS, 0)


def prepare_memory_for_training() -> None:
    """Both; call it at the start of a command that trains."""
    keep_freed_memory()
    keep_few_kernels()
