"""Namespaces of one's own, and a root that holds Python and nothing else. Linux alone; no package, no privilege needed.

``enter`` turns the calling process into the first process (PID 1) of a fresh user, mount, PID, network, IPC, UTS and
cgroup namespace. What that gives: no network interface, no file outside ``view`` and the scratch directory, no sight of
any other process, and an end of PID 1 that ends every process below it, daemons included.
"""

import os

from . import libc

CLONE_NEWUSER = 0x10000000
CLONE_NEW_OTHERS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""Mount, cgroup, UTS, IPC, PID and network."""
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
MOUNT_ATTR_RDONLY_NOSUID = 1 | 2
NOBODY = 65534
SCRATCH = "/scratch"
SIGKILL = 9


def enter(view: dict, scratch_bytes: int) -> None:
    """Return in PID 1 of the new namespaces, without privileges, in the scratch directory; the caller's process waits.

    ``view`` is ``{"readable": [directories], "hidden": [directories below them], "links": [[path, target]]}``. OSError
    if the machine does not allow one of the steps.
    """
    os.umask(0o022)
    uid, gid = _enter_user_namespace()
    libc.unshare(CLONE_NEW_OTHERS)
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        os._exit(0)
    _build_root(view, scratch_bytes)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.drop_capabilities()
    libc.prctl(libc.PR_SET_PDEATHSIG, SIGKILL)
    # Processes of one user may trace each other; not these, so that tests are safe from what they test.
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    os.chdir(SCRATCH)


def _enter_user_namespace() -> tuple[int, int]:
    """Unshare the user namespace and return the (uid, gid) to become in it.

    Root becomes nobody, because the kernel exempts root's processes from RLIMIT_NPROC; anyone else stays who they are.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        os.setgroups([])
        uid_map, gid_map, uid, gid = _two_ids(0), _two_ids(gid), NOBODY, NOBODY
    else:
        uid_map, gid_map = f"{uid} {uid} 1", f"{gid} {gid} 1"
    wait_end, go_end = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go_end)
        os.read(wait_end, 1)  # the end of file says that the parent has unshared
        os._exit(_write_maps(os.getppid(), uid_map, gid_map))
    os.close(wait_end)
    libc.unshare(CLONE_NEWUSER)
    os.close(go_end)
    if status := os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1]):
        raise OSError(status, f"uid_map: {os.strerror(status)}")
    return uid, gid


def _two_ids(own: int) -> str:
    return f"{own} {own} 1" if own == NOBODY else f"{own} {own} 1\n{NOBODY} {NOBODY} 1"


def _write_maps(pid: int, uid_map: str, gid_map: str) -> int:
    """Write the maps of the process ``pid``; 0, or the error's number."""
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        return error.errno or 1
    return 0


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
