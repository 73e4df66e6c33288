"""Namespaces of one's own, and a root that holds Python and nothing else. Linux alone; no package, no privilege needed.

``fork`` makes the first process (PID 1) of a fresh user, mount, PID, network, IPC, UTS and cgroup namespace, ``enter``
is what that process does next. What that gives: no network interface, no file outside ``view`` and the scratch
directory, no sight of any other process, and an end of PID 1 that ends every process below it, daemons included.
"""

import contextlib
import errno
import os
import signal

from . import libc

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
MOUNT_ATTR_RDONLY_NOSUID = 1 | 2
NOBODY = 65534
SCRATCH = "/scratch"


def fork() -> tuple[int, OSError | None]:
    """``os.fork`` into new namespaces: the pid, or in the child 0 and what the machine refused it, if anything.

    OSError in the caller, without a child, if the machine refuses namespaces.
    """
    wait_end, go_end = os.pipe()
    try:
        pid = libc.clone(libc.NEW_NAMESPACES | signal.SIGCHLD)
    except OSError:
        os.close(wait_end)
        os.close(go_end)
        raise
    if pid == 0:
        os.close(go_end)
        [number] = os.read(wait_end, 1) or [errno.ESRCH]
        os.close(wait_end)
        return 0, OSError(number, f"uid_map: {os.strerror(number)}") if number else None
    os.close(wait_end)
    with contextlib.suppress(BrokenPipeError):  # the child was killed
        # Only a process outside may map more than one id, which root needs.
        os.write(go_end, bytes([_write_maps(pid)]))
    os.close(go_end)
    return pid, None


def enter(view: dict, scratch_bytes: int) -> None:
    """Become, in a child of ``fork``, a process without privileges in the scratch directory.

    ``view`` is ``{"readable": [directories], "hidden": [directories below them], "links": [[path, target]]}``. OSError
    if the machine does not allow one of the steps.
    """
    os.umask(0o022)
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        # The kernel exempts root's processes from RLIMIT_NPROC; anyone else stays who they are.
        os.setgroups([])
        uid, gid = NOBODY, NOBODY
    _build_root(view, scratch_bytes)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.drop_capabilities()
    # Processes of one user may trace each other; not these, so that tests are safe from what they test.
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    os.chdir(SCRATCH)


def _write_maps(pid: int) -> int:
    """Give the process ``pid`` our ids, and nobody's beside root's; 0, or the error's number."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        texts = {"uid_map": _two_ids(uid), "gid_map": _two_ids(gid)}
    else:
        texts = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    try:
        for name, text in texts.items():
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _two_ids(own: int) -> str:
    return f"{own} {own} 1" if own == NOBODY else f"{own} {own} 1\n{NOBODY} {NOBODY} 1"


def _build_root(view: dict, scratch_bytes: int) -> None:
    """Make a small tmpfs the root, show the readable directories in it read-only, and let go of the old root."""
    libc.mount("none", "/", None, MS_REC | MS_SLAVE)
    base = next(path for path in ("/tmp", "/var/tmp", "/mnt", "/") if os.path.isdir(path))
    libc.mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir(f"{base}/old")
    libc.pivot_root(base, f"{base}/old")
    os.chdir("/")
    for path in view["readable"]:
        os.makedirs(path)
        libc.mount(f"/old{path}", path, None, MS_BIND | MS_REC)
    for path in view["hidden"]:
        libc.mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=755")
    for path, target in view["links"]:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(target, path)
    os.mkdir("/dev")
    with open("/dev/null", "w"):
        libc.mount("/old/dev/null", "/dev/null", None, MS_BIND)
    os.mkdir(SCRATCH)
    libc.detach("/old")
    os.rmdir("/old")
    libc.set_mount_attributes("/", MOUNT_ATTR_RDONLY_NOSUID)
    libc.mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, f"size={scratch_bytes},nr_inodes=4096,mode=777")
