"""Memory that a training process has freed stays its own.

glibc maps every tensor above some megabytes anew and unmaps it when it is freed, so that each step touches its
activations' pages for the first time, and the kernel clears them: about a fifth of a training step of a small head on
a CPU. A training step needs what the step before it needed, so nothing is gained by giving memory back.
"""

from __future__ import annotations

import ctypes
import platform

# Options of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Serve large tensors from the heap and never shrink it, from now on; False where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(option, value) for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    )
