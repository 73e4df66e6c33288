"""The system calls that Python 3.11's ``os`` lacks, through ctypes. Errors are OSErrors that name the call."""

import ctypes
import errno
import os

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
CLONE = {"x86_64": 56, "aarch64": 220}
"""Its number by architecture."""
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""Its flags for namespaces: user, mount, cgroup, UTS, IPC, PID and network."""
MOUNT_SETATTR = 442
"""Its number is the same on every architecture (Linux 5.12)."""
AT_RECURSIVE = 0x8000
LINUX_CAPABILITY_VERSION_3 = 0x20080522

_LIBC = ctypes.CDLL(None, use_errno=True)
_HOLDING_THE_LOCK = ctypes.PyDLL(None, use_errno=True)
"""Calls that keep Python's interpreter lock: a child must find it in its own hands."""


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def clone(flags: int) -> int:
    """Fork with flags, on a stack of the same place. For a process of one thread: Python learns nothing of it."""
    machine = os.uname().machine
    if machine not in CLONE:
        raise OSError(errno.ENOSYS, f"clone: its number on {machine} is not known")
    number, nothing = ctypes.c_long(CLONE[machine]), ctypes.c_void_p()
    pid = _HOLDING_THE_LOCK.syscall(number, ctypes.c_ulong(flags), nothing, nothing, nothing, nothing)
    _checked("clone", pid)
    return pid


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = kind.encode() if kind else None
    result = _LIBC.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode() or None)
    _checked(f"mount {target}", result)


def detach(target: str) -> None:
    _checked(f"umount {target}", _LIBC.umount2(target.encode(), 2))


def pivot_root(new_root: str, put_old: str) -> None:
    _checked("pivot_root", _LIBC.pivot_root(new_root.encode(), put_old.encode()))


def set_mount_attributes(path: str, attributes: int) -> None:
    """Add ``attributes`` (MOUNT_ATTR_*) to the mount at ``path`` and to all below it."""
    record = _MountAttributes(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(record))
    number, at_fdcwd = ctypes.c_long(MOUNT_SETATTR), ctypes.c_int(-100)
    result = _LIBC.syscall(number, at_fdcwd, path.encode(), ctypes.c_uint(AT_RECURSIVE), ctypes.byref(record), size)
    _checked("mount_setattr (Linux 5.12)", result)


def prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(f"prctl {option}", _LIBC.prctl(option, *padded))


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    _checked("capset", _LIBC.capset(header, (ctypes.c_uint32 * 6)()))


def _checked(call: str, result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
