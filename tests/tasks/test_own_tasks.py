"""A task of one's own is named by its file or module; the guide's example is one, and runs are what it plays."""

import re
import sys
from pathlib import Path

import pytest

from bebop.errors import UserError
from bebop.rl.jobs import load_tasks
from bebop.tasks.base import Split
from bebop.tasks.registry import load_task
from bebop.training.sft import TaskChoice

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "tasks.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The guide's example as ``my_tasks.py`` in the working directory."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_tasks.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guides_example_is_a_task(example):
    task = load_task("my_tasks.py:Reverse", 3, {"length": 6})
    problem = task.problem(Split.TRAIN, 5)
    assert problem.messages == load_task("my_tasks.py:Reverse", 3, {"length": 6}).problem(Split.TRAIN, 5).messages
    word = problem.messages[0].content.split()[1]
    assert len(word) == 6
    outcomes = [task.start(problem).step(text).outcome for text in (word[::-1], word + "x")]
    assert [one.reward for one in outcomes if one] == [1.0, 0.0]
    assert task.demonstration(problem, 0)[-1].content == word[::-1]


def test_a_module_is_imported_by_its_name(example, monkeypatch):
    monkeypatch.syspath_prepend(str(example))
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    assert load_task("my_tasks:Reverse").name == "reverse"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.py:Reverse", "there is no file absent.py"),
        ("no_such_module:Reverse", "there is no module no_such_module"),
        ("my_tasks.py:Absent", "my_tasks.py has no Absent"),
        ("my_tasks.py:seeded", "is no task"),
        ("mathh", "did you mean math"),
        ("math:hard", "there is no task 'math:hard'"),
    ],
)
def test_what_is_no_task_is_said(example, name, message):
    (example / "my_tasks.py").write_text("def seeded(seed, options):\n    return object()\n")
    with pytest.raises(UserError, match=message):
        load_task(name)


def test_tasks_of_one_name_are_refused(example):
    (example / "copy.py").write_text((example / "my_tasks.py").read_text())
    choices = [TaskChoice(name="my_tasks.py:Reverse"), TaskChoice(name="copy.py:Reverse")]
    with pytest.raises(UserError, match="2 of the tasks are called reverse"):
        load_tasks(choices, 0)
