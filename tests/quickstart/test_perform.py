"""Acts run in order, waves side by side; what is done stays done; a failure says where to look."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bebop.errors import UserError
from bebop.quickstart import perform as performing
from bebop.quickstart.acts import Act, Step, one_by_one, output_of, side_by_side
from bebop.quickstart.perform import last_line, perform


class Silent:
    def __init__(self) -> None:
        self.ended: list[tuple[str, list[str]]] = []
        self.seen: list[set[str]] = []

    def begin(self, number: int, act: Act) -> None: ...

    def watch(self, messages: Mapping[str, str]) -> None:
        self.seen.append(set(messages))

    def end(self, act: Act, seconds: float, found: Sequence[str]) -> None:
        self.ended.append((act.title, list(found)))


@pytest.fixture(autouse=True)
def python_instead_of_bebop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's first argument is a program; launching is otherwise as it is."""
    popen = subprocess.Popen

    def run(command: list[str], **how: object) -> subprocess.Popen:
        assert command[:3] == [sys.executable, "-m", "bebop"]
        return popen([sys.executable, "-c", *command[3:]], **how)  # type: ignore[call-overload]

    monkeypatch.setattr(performing.subprocess, "Popen", run)


def step(name: str, program: str) -> Step:
    return Step(name=name, arguments=(program,))


def act(title: str, waves: tuple[tuple[Step, ...], ...]) -> Act:
    names = [one.name for wave in waves for one in wave]
    return Act(
        title=title,
        purpose="",
        waves=waves,
        found=lambda directory: [output_of(directory, name).read_text().strip() for name in names],
    )


def test_acts_follow_one_another_and_waves_run_side_by_side(tmp_path: Path) -> None:
    waits = "import pathlib, sys, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)\nprint({!r})"
    meets = [
        step(name, f"open({str(tmp_path / name)!r}, 'w').close()\n" + waits.format(str(tmp_path / other), name))
        for name, other in (("left", "right"), ("right", "left"))
    ]
    last = step("last", "print('z')")
    stage = Silent()
    perform([act("meet", side_by_side(*meets)), act("end", one_by_one(last))], tmp_path, stage)
    assert stage.ended == [("meet", ["left", "right"]), ("end", ["z"])]
    assert {"left", "right"} in stage.seen


def test_a_broken_quickstart_goes_on_where_it_was(tmp_path: Path) -> None:
    count = tmp_path / "count"
    counts = step("counts", f"open({str(count)!r}, 'a').write('x')")
    flag = tmp_path / "flag"
    fails = step("fails", f"import os, sys\nif not os.path.exists({str(flag)!r}): sys.exit('error: no flag')")
    acts = [act("one", one_by_one(counts)), act("two", one_by_one(fails))]
    with pytest.raises(UserError, match=r"error: no flag.*fails\.log.*goes on there"):
        perform(acts, tmp_path, Silent())
    flag.touch()
    stage = Silent()
    perform(acts, tmp_path, stage)
    assert count.read_text() == "x"
    assert [title for title, _ in stage.ended] == ["one", "two"]
    perform([act("one", one_by_one(step("counts", "print('other arguments')")))], tmp_path, Silent())
    assert output_of(tmp_path, "counts").read_text() == "other arguments\n"


def test_a_failure_stops_what_runs_beside_it(tmp_path: Path) -> None:
    sleeps = step("sleeps", "import time; time.sleep(600)")
    fails = step("fails", "raise SystemExit(3)")
    with pytest.raises(UserError, match="exit code 3"):
        perform([act("both", side_by_side(sleeps, fails))], tmp_path, Silent())
    assert not (tmp_path / "done" / "sleeps.json").exists()


def test_what_is_done_of_a_wave_that_is_broken_off_stays_done(tmp_path: Path) -> None:
    """A neighbour that fails later, or a person who calls it off, does not have it repeated."""
    count = tmp_path / "count"
    counts = step("counts", f"open({str(count)!r}, 'a').write('x')")
    mark = tmp_path / "done" / "counts.json"
    waits = (
        "import os, time\nfor _ in range(1000):\n"
        f"    if os.path.exists({str(mark)!r}): raise SystemExit(3)\n    time.sleep(0.01)\nraise SystemExit(4)"
    )
    wave = [act("both", side_by_side(counts, step("fails", waits)))]
    stage = Silent()
    for _ in range(2):
        with pytest.raises(UserError, match="exit code 3"):
            perform(wave, tmp_path, stage)
    assert count.read_text() == "x"
    assert {"fails"} in stage.seen


def test_the_newest_line_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nsecond \n\n")
    assert last_line(log) == "second"
