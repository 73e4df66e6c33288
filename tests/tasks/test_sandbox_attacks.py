"""Model-written code at its worst: each attack ends with a reason, harms nothing, and the caller goes on.

Every test runs real code in the real sandbox; on a machine that cannot isolate they are skipped with what is missing.
"""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from bebop.tasks.sandbox import Ending, SandboxConfig, SandboxResult, probe, run_python
from bebop.tasks.sandbox.server import HERE
from bebop.tasks.sandbox.view import python_view

# Long enough that a second of processor time comes together on a machine that does much else.
CONFIG = SandboxConfig(wall_s=90.0, cpu_s=1, memory_mb=128, scratch_mb=4, output_kb=64)

pytestmark = pytest.mark.skipif(not probe().isolated, reason=probe().missing)


def attack(source: str, config: SandboxConfig = CONFIG) -> SandboxResult:
    result = run_python(textwrap.dedent(source), config=config)
    assert run_python("print('going on')", config=CONFIG).stdout == "going on\n"
    return result


def named(source: str, name: str) -> str:
    """``source`` as a process whose name, and that of its children, the host can see."""
    return f"import ctypes\nctypes.CDLL(None).prctl(15, {name.encode()!r})\n" + textwrap.dedent(source)


def is_alive(name: str) -> bool:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == name:
                return True
    return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def name() -> str:
    return f"bebop{uuid.uuid4().hex[:9]}"


def test_endless_loop_hits_the_cpu_limit():
    assert attack("while True: pass").reason is Ending.CPU_LIMIT


def test_endless_loop_that_catches_the_cpu_signal_is_killed_all_the_same():
    source = """
        import signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True:
            try:
                while True: pass
            except BaseException: pass
    """
    assert attack(source).reason is Ending.CPU_LIMIT


def test_limits_cannot_be_raised():
    source = """
        import resource
        for name in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
            try:
                resource.setrlimit(name, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            except ValueError:
                continue
            print("raised", name)
    """
    result = attack(source)
    assert (result.reason, result.stdout) == (Ending.OK, "")


def test_sleep_ends_at_the_wall_time_and_what_was_printed_is_kept():
    source = """
        import time, signal
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
        print("before", flush=True)
        while True: time.sleep(1000)
    """
    result = attack(source, CONFIG.model_copy(update={"wall_s": 2.0}))
    assert (result.reason, result.stdout) == (Ending.TIMEOUT, "before\n")


def test_fork_bomb_ends_at_the_process_limit():
    assert attack("import os\nwhile True: os.fork()").reason is Ending.PROCESS_LIMIT


def test_stubborn_fork_bomb_ends_with_all_its_processes(name):
    source = """
        import os
        while True:
            try: os.fork()
            except OSError: pass
    """
    result = attack(named(source, name), CONFIG.model_copy(update={"wall_s": 1.0}))
    assert result.reason in (Ending.CPU_LIMIT, Ending.TIMEOUT)
    assert not is_alive(name)


def test_number_of_processes_is_limited():
    source = """
        import os, time
        for count in range(1000):
            try:
                if os.fork() == 0: time.sleep(100)
            except BlockingIOError: break
        print(count)
    """
    result = attack(source, CONFIG.model_copy(update={"max_processes": 5}))
    assert 1 <= int(result.stdout) <= 8


def test_memory_bomb_hits_the_memory_limit():
    assert attack("held = []\nwhile True: held.append(bytearray(1 << 20))").reason is Ending.MEMORY_LIMIT


def test_memory_bomb_that_catches_the_error_still_holds_no_more_than_its_limit():
    source = """
        held, failed = [], 0
        while failed < 3:
            try: held.append(bytearray(1 << 20))
            except MemoryError: failed += 1
        size = len(held); del held; print(size)
    """
    result = attack(source)
    assert result.reason is Ending.OK
    assert 10 < int(result.stdout) < CONFIG.memory_mb


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_printing_gigabytes_hits_the_output_limit(stream: str):
    result = attack(f"import sys\nwhile True: sys.{stream}.write('x' * 65536)")
    assert result.reason is Ending.OUTPUT_LIMIT
    assert len(getattr(result, stream)) == CONFIG.output_kb << 10


def test_writing_gigabytes_hits_the_output_limit():
    assert attack("file = open('big', 'wb')\nwhile True: file.write(bytes(1 << 20))").reason is Ending.OUTPUT_LIMIT


def test_many_files_together_stay_within_the_scratch_size():
    source = """
        total = 0
        for number in range(100):
            try:
                open(f"part{number}", "wb").write(bytes(1 << 20)); total += 1
            except OSError: break
        print(total)
    """
    assert int(attack(source).stdout) <= CONFIG.scratch_mb


def test_memory_that_no_limit_counts_is_refused():
    source = """
        import ctypes, os
        try: os.memfd_create("hidden")
        except PermissionError: print("memfd refused")
        print("shmget", ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600))
    """
    assert attack(source).stdout == "memfd refused\nshmget -1\n"


def test_deleting_and_writing_outside_the_scratch_directory_is_impossible(tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("alive")
    tmp_path.chmod(0o777)
    canary.chmod(0o666)
    source = f"""
        import os, shutil
        shutil.rmtree({str(tmp_path)!r}, ignore_errors=True)
        for path in ({str(canary)!r}, os.__file__, "/evil", "/lib/evil", "/usr/evil", "/usr/lib/evil", "/dev/evil"):
            try: open(path, "a").close()
            except OSError: continue
            print("opened", path)
        open("mine", "w").write("works")
        print(open("mine").read())
    """
    result = attack(source)
    assert result.stdout == "works\n"
    assert canary.read_text() == "alive"


def test_files_of_the_host_cannot_be_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("token")
    secret.chmod(0o644)
    paths = [
        str(secret),
        os.path.expanduser("~/.ssh"),
        os.path.expanduser("~/.bashrc"),
        "/etc/passwd",
        "/proc/1/environ",
        __file__,
    ]
    source = f"""
        import os
        print([path for path in {paths!r} if os.path.exists(path)], os.listdir("."))
    """
    assert attack(source).stdout == "[] []\n"


def test_installed_packages_which_may_hold_answers_are_hidden():
    library = Path(os.__file__).parent
    # Debian's interpreter has them beside its library, in a directory of all its versions.
    places = [library / "site-packages", library / "dist-packages", library.parent / "python3" / "dist-packages"]
    full = [str(one) for one in places if one.is_dir() and list(one.iterdir())]
    assert full, "nothing to hide"
    assert attack(f"import os; print([os.listdir(one) for one in {full!r}])").stdout == f"{[[]] * len(full)}\n"


def test_everything_but_the_scratch_directory_is_mounted_read_only():
    """Permissions alone would not do: an ordinary user may own the interpreter's files."""
    source = """
        import os
        print([os.statvfs(path).f_flag & os.ST_RDONLY for path in ("/", "/usr/lib", os.__file__, "/scratch")])
    """
    assert attack(source).stdout == "[1, 1, 1, 0]\n"


def test_environment_is_empty(monkeypatch):
    monkeypatch.setenv("BEBOP_SECRET", "hunter2")
    source = """
        import ctypes, os
        print(dict(os.environ), ctypes.CDLL(None).getenv(b"BEBOP_SECRET"))
    """
    result = attack(source)
    assert result.stdout == "{} 0\n"


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_VSOCK", "AF_NETLINK", "AF_ALG"])
def test_sockets_cannot_be_opened(family: str):
    result = attack(f"import socket\nsocket.socket(socket.{family}, socket.SOCK_STREAM)")
    assert result.reason is Ending.WRONG_EXIT
    assert "PermissionError" in result.stderr


def test_network_namespace_holds_without_the_filter():
    """The second wall: even with sockets, not so much as this machine's loopback is in reach."""
    source = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import os, socket
        from jail import namespaces
        child, refusal = namespaces.fork()
        if child or refusal:
            sys.exit(os.waitpid(child, 0)[1] or refusal)
        namespaces.enter(eval(sys.argv[2]), 1 << 20)
        print(socket.socket().connect_ex(("127.0.0.1", int(sys.argv[3]))), flush=True)
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(HERE), repr(python_view()), str(server.getsockname()[1])]
        command = [os.path.realpath(sys.executable), "-I", "-S", "-c", textwrap.dedent(source), *arguments]
        assert int(subprocess.check_output(command)) == errno.ENETUNREACH


def test_privileges_cannot_be_regained():
    source = """
        import ctypes, os
        libc = ctypes.CDLL(None)
        for name, attempt in [
            ("setuid", lambda: os.setuid(0)),
            ("chroot", lambda: os.chroot(".")),
            ("chown", lambda: (open("mine", "w"), os.chown("mine", 0, 0))),
            ("mknod", lambda: os.mknod("device", 0o60666, os.makedev(254, 0))),
        ]:
            try: attempt()
            except OSError: continue
            print(name)
        print(libc.unshare(0x10000000), libc.mount(b"none", b"/", None, 32, None), libc.ptrace(0, 0, 0, 0))
    """
    assert attack(source).stdout == "-1 -1 -1\n"


def test_daemon_left_behind_is_killed(name):
    source = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 64)
                time.sleep(1000)
            os._exit(0)
        print("parent leaves")
    """
    result = attack(named(source, name))
    assert (result.reason, result.stdout) == (Ending.OK, "parent leaves\n")
    assert not is_alive(name)


def test_killing_everything_in_sight_ends_only_itself():
    source = """
        import os
        assert os.getppid() == 1  # in a namespace, or this would hit the host
        os.kill(1, 9)
        try: os.kill(-1, 9)
        except ProcessLookupError: print("nobody else here")
    """
    assert attack(source).stdout == "nobody else here\n"
    assert attack("import os\nos.kill(os.getpid(), 11)").reason is Ending.KILLED


def test_sandbox_ends_when_its_owner_is_killed(name):
    code = f"""
        from bebop.tasks.sandbox import SandboxConfig, run_python
        run_python({named("import time; time.sleep(1000)", name)!r}, config=SandboxConfig(wall_s=900))
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    assert eventually(lambda: is_alive(name))
    owner.kill()
    owner.wait()
    assert eventually(lambda: not is_alive(name))
