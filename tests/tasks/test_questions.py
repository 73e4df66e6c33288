"""Questions out of a file: splits that do not meet, answers in any notation, rows that are named when they are none."""

import json

import pytest

from bebop.errors import UserError
from bebop.tasks.base import Split
from bebop.tasks.registry import load_task

ROWS = [
    {"question": f"What is {n} + {n}?", "answer": 2 * n, "worked": f"Twice {n}.\nAnswer: {2 * n}"} for n in range(60)
]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


def asked(task, split, count):
    return [task.problem(split, index).messages[-1].content for index in range(count)]


def test_every_question_is_in_one_split_and_train_ones_come_round_in_a_new_order(file):
    task = load_task(f"questions:{file}")
    heldout = len(task.questions[Split.HELDOUT])
    train = len(ROWS) - heldout
    assert task.name == "sums" and 0 < heldout < 20
    first, second = asked(task, Split.TRAIN, 2 * train)[:train], asked(task, Split.TRAIN, 2 * train)[train:]
    assert sorted(first) == sorted(second) and len(set(first)) == train and first != second
    assert not {*first} & {*asked(task, Split.HELDOUT, heldout)}
    assert asked(load_task(f"questions:{file}"), Split.TRAIN, 9) == first[:9], "a problem is a function of its index"
    assert asked(load_task(f"questions:{file}", seed=1), Split.TRAIN, 9) != first[:9]
    with pytest.raises(UserError, match=rf"sums has {heldout} held-out questions; ask for fewer"):
        task.problem(Split.HELDOUT, heldout)


def test_what_is_measured_is_not_trained_on(file, tmp_path):
    heldout = write(tmp_path / "test.jsonl", [*ROWS[:7], {"question": "New?", "answer": "yes"}])
    task = load_task("questions", 0, {"file": str(file), "heldout": str(heldout)})
    assert (len(task.questions[Split.TRAIN]), len(task.questions[Split.HELDOUT])) == (53, 8)


def test_the_final_answer_is_graded(file):
    task = load_task("questions", 0, {"file": str(file), "solution": "worked", "system": "Be brief."})
    problem = task.problem(Split.TRAIN, 3)
    assert problem.messages[0].role == "system" and "Answer:" in problem.messages[-1].content
    *opening, shown = task.demonstration(problem, 0)
    assert tuple(opening) == problem.messages
    answer = problem.facts["question"].answer
    texts = {shown.content: "solved", "Answer: 1999": "wrong answer", "no idea": "no answer"}
    texts[f"so it is \\boxed{{{answer}.0}}"] = "solved"
    for text, reason in texts.items():
        outcome = task.start(problem).step(text).outcome
        assert outcome is not None and (outcome.reason, outcome.reward) == (reason, float(reason == "solved"))


def test_columns_and_answers_have_the_shapes_that_data_sets_have(tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "1 + 1?"}]
    rows = [{"prompt": chat if n else f"{n}?", "final": f"Because.\n#### {n}"} for n in range(30)]
    options = {"question": "prompt", "answer": "final", "answer_after": "####", "instruction": ""}
    options["heldout"] = str(write(tmp_path / "other.jsonl", rows[:1]))
    task = load_task(f"questions:{write(tmp_path / 'chats.jsonl', rows)}", 0, options)
    problem = task.problem(Split.TRAIN, 0)
    assert [one.role for one in problem.messages] == ["system", "user"] and problem.messages[-1].content == "1 + 1?"
    assert problem.facts["question"].answer.isdigit()
    with pytest.raises(UserError, match="no worked solutions"):
        task.demonstration(problem, 0)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "?"}, {}, r"sums.jsonl:1 has no 'question', it has text; name the column"),
        ({"question": "?", "answer": None}, {}, r"has no 'answer'"),
        ({"question": "?", "answer": "4"}, {"answer_after": "####"}, r"has no '####' in 'answer'"),
        ({"question": [{"role": "user"}], "answer": "4"}, {}, r"neither a text nor a chat"),
        ({"question": [{"role": "assistant", "content": "x"}], "answer": "4"}, {}, r"does not end with a user's"),
        ({"question": "?", "answer": "4"}, {}, r"leaves no .* questions"),
        ("text", {}, r"it has no columns"),
        ({"question": "?", "answer": ["4"]}, {}, r"'answer' is \['4'\]; give a text or a number"),
        ({"question": "?", "answer": True}, {}, r"'answer' is True"),
        ({"question": "?", "answer": " "}, {}, r"has an empty 'answer'"),
        ({"question": [{"role": "developer", "content": "x"}], "answer": "4"}, {}, r"neither a text nor a chat"),
        ({"question": "\ud800", "answer": "4"}, {}, r"neither a text nor a chat"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, options, message):
    with pytest.raises(UserError, match=message):
        load_task(f"questions:{write(tmp_path / 'sums.jsonl', [row])}", 0, options)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"there is no file nowhere\.jsonl"):
        load_task("questions:nowhere.jsonl")


def test_what_is_written_around_a_question_does_not_decide_its_split(file):
    plain, dressed = (
        load_task("questions", 0, {"file": str(file), **more}) for more in ({}, {"system": "s", "instruction": "!"})
    )
    for split in Split:
        ours, theirs = ([one.identity for one in task.questions[split]] for task in (plain, dressed))
        assert ours == theirs


def test_a_solution_that_does_not_end_with_the_answer_is_shown_with_it(tmp_path):
    rows = [{"question": f"{n}?", "answer": f"As it is.\n#### {n}"} for n in range(40)]
    options = {"solution": "answer", "answer_after": "####"}
    task = load_task(f"questions:{write(tmp_path / 'sums.jsonl', rows)}", 0, options)
    problem = task.problem(Split.TRAIN, 0)
    text = task.demonstration(problem, 0)[-1].content
    assert text.endswith(f"\nAnswer: {problem.facts['question'].answer}")
    assert task.grade(text, problem.facts["question"].answer).reward == 1.0
    assert task.grade("Answer: 12\nI hope this helps.", "12").reward == 1.0
