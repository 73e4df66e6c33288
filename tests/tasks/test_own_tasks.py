"""A task of one's own is named by its file or module; the guide's example is one, and runs are what it plays."""

import re
import sys
from pathlib import Path

import pytest

from bebop.cli.task_choice import chosen_tasks
from bebop.errors import UserError
from bebop.tasks.base import Split
from bebop.tasks.registry import TaskChoice, load_task, load_tasks

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "tasks.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The guide's example as ``my_tasks.py`` in the working directory; other tests' places and modules are unknown."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_tasks", "words_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
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
    assert load_task("my_tasks:Reverse").name == "reverse"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.py:Reverse", "there is no file absent.py"),
        ("no_such_module:Reverse", "there is no module no_such_module"),
        ("my_tasks.py:Absent", "my_tasks.py has no Absent"),
        ("my_tasks.py:seeded", "is no task"),
        ("bebop.absent:Reverse", r"there is no module bebop\.absent"),
        ("question:sums.jsonl", "did you mean questions"),
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


def test_a_file_may_import_what_stands_beside_it_and_files_of_one_name_are_apart(example):
    (example / "words_of_mine.py").write_text("LENGTH = 7\n")
    for place in ("one", "two"):
        (example / place).mkdir()
        code = (example / "my_tasks.py").read_text().replace('"reverse"', f'"reverse-{place}"')
        (example / place / "my_tasks.py").write_text(code)
    (example / "helped.py").write_text("from words_of_mine import LENGTH\nfrom my_tasks import Reverse as Task\n")
    assert load_task("helped.py:Task").name == "reverse"
    tasks = load_tasks([TaskChoice(name=f"{place}/my_tasks.py:Reverse") for place in ("one", "two")], 0)
    assert [one.name for one in tasks.values()] == ["reverse-one", "reverse-two"]


def test_the_evaluations_take_names_or_a_list_with_options(example):
    assert [one.name for one in chosen_tasks("math,agent", 0)] == ["math", "agent"]
    (task,) = chosen_tasks('[{name: "my_tasks.py:Reverse", options: {length: 9}}]', 0)
    assert len(task.problem(Split.TRAIN, 0).messages[0].content.split()[1]) == 9
    for text in ("math,math", "[{name: math}, {name: math}]"):
        with pytest.raises(UserError, match="2 of the tasks are called math"):
            chosen_tasks(text, 0)
