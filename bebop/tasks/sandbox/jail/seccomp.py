"""A system-call filter: what model-written Python has no business calling fails with EPERM.

It closes what namespaces leave open: socket families that ignore the network namespace (vsock), memory that no limit
counts (memfd, System V), further namespaces, tracing, and the kernel's larger attack surfaces.
"""

import ctypes
import os
import struct

from . import libc

# name: (x86_64, aarch64), from the kernel's asm/unistd.h
DENIED = {
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "ptrace": (101, 117),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
CLONE = (libc.CLONE["x86_64"], libc.CLONE["aarch64"])
CLONE3 = 435
X32_BIT = 0x40000000
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables above, and AUDIT_ARCH."""

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38


def install() -> None:
    """Filter this process and all that come from it, for good. OSError on a machine that the table does not know."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(ENOSYS, f"seccomp: no table of system calls for {machine}")
    code = program(*MACHINES[machine])
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)))
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_SECCOMP, 2, ctypes.addressof(header))


def program(column: int, audit_arch: int) -> bytes:
    """The filter as classic BPF. A true comparison falls through to its verdict, a false one skips it."""
    steps = [
        _step(LOAD, ARCH_AT),
        _step(JUMP_EQUAL, audit_arch, on_true=1),
        _step(RETURN, KILL_PROCESS),
        _step(LOAD, NUMBER_AT),
        _step(JUMP_AT_LEAST, X32_BIT, on_false=1),
        _step(RETURN, ERRNO | ENOSYS),
        # clone3 hides its flags in memory; told it does not exist, the C library falls back on clone
        _step(JUMP_EQUAL, CLONE3, on_false=1),
        _step(RETURN, ERRNO | ENOSYS),
    ]
    for numbers in DENIED.values():
        steps += [_step(JUMP_EQUAL, numbers[column], on_false=1), _step(RETURN, ERRNO | EPERM)]
    steps += [
        _step(JUMP_EQUAL, CLONE[column], on_false=3),
        _step(LOAD, FIRST_ARGUMENT_AT),
        _step(JUMP_ANY_BIT, libc.NEW_NAMESPACES, on_false=1),
        _step(RETURN, ERRNO | EPERM),
        _step(RETURN, ALLOW),
    ]
    return b"".join(steps)


def _step(code: int, operand: int, *, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, on_true, on_false, operand)
