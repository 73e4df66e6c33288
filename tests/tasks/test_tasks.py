"""The tasks keep their promises: deterministic, splits apart, experts solve them, mistakes are named."""

import json
from dataclasses import replace

import pytest

from bebop.errors import UserError
from bebop.tasks.agent_worlds import calculator, tool_call
from bebop.tasks.base import Split, split_of
from bebop.tasks.code_operations import OPERATIONS
from bebop.tasks.math import grade
from bebop.tasks.registry import load_task

NAMES = ("math", "code", "agent")


@pytest.mark.parametrize("name", NAMES)
def test_problems_and_demonstrations_depend_on_their_words_alone(name):
    first, again = load_task(name, seed=3), load_task(name, seed=3)
    problem = first.problem(Split.TRAIN, 7)
    assert problem.messages == again.problem(Split.TRAIN, 7).messages
    assert first.demonstration(problem, 1) == again.demonstration(again.problem(Split.TRAIN, 7), 1)
    assert problem.messages != first.problem(Split.TRAIN, 8).messages
    assert problem.messages != load_task(name, seed=4).problem(Split.TRAIN, 7).messages


@pytest.mark.parametrize("name", NAMES)
def test_splits_cannot_overlap(name):
    task = load_task(name)
    asked = {split: {identity(task.problem(split, index)) for index in range(300)} for split in Split}
    assert not asked[Split.TRAIN] & asked[Split.HELDOUT]
    assert all(split_of(one) is split for split in Split for one in asked[split])


def identity(problem):
    facts = problem.facts
    return facts["world"].identity if "world" in facts else next(iter(facts.values())).question


@pytest.mark.parametrize("name", NAMES)
def test_every_demonstration_earns_the_full_reward(name):
    task = load_task(name)
    for index in range(12):
        problem = task.problem(Split.TRAIN, index)
        episode, outcomes = task.start(problem), []
        for message in task.demonstration(problem, seed=index):
            if message.role == "assistant":
                outcomes.append(episode.step(message.content).outcome)
        assert outcomes[-1] is not None and outcomes[-1].reward == 1.0, (problem.messages, outcomes[-1])
        assert all(one is None for one in outcomes[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_demonstrations_of_one_problem_vary(name):
    task = load_task(name)
    problem = task.problem(Split.TRAIN, 0)
    assert len({task.demonstration(problem, seed) for seed in range(20)}) > 5


def test_some_of_the_agents_demonstrations_mend_a_slip_that_is_not_learned_from():
    task = load_task("agent")
    shown = [task.demonstration(task.problem(Split.TRAIN, index), seed=0) for index in range(60)]
    slips = [messages for messages in shown if not all(one.is_learned for one in messages)]
    assert 5 <= len(slips) <= 25
    for messages in slips:
        at = next(place for place, one in enumerate(messages) if not one.is_learned)
        slip, _, check, failed, mended = messages[at : at + 5]
        assert "write" in slip.content and "check" in check.content and failed.content == "failed"
        assert mended.is_learned and "write" in mended.content
        assert sum(one.content == "failed" for one in messages) == 1


def test_math_grades_the_last_answer():
    assert grade("Answer: 3\nno,\nAnswer: 4", 4).reason == "solved"
    assert grade("Answer: 4\nno,\nAnswer: 3", 4).reason == "wrong answer"
    assert grade("it is 4", 4).reason == "no answer"
    assert grade("Answer: -4", 4).reward == 0.0


def test_code_rejects_what_does_not_compute_the_behaviour():
    task = load_task("code")
    problem = task.problem(Split.TRAIN, 0)
    name = problem.facts["specification"].function_name
    step = lambda text: task.start(problem).step(text).outcome  # noqa: E731
    assert step("I do not know.").reason == "no function"
    assert step(f"```python\ndef {name}(v):\n    return None\n```").reward == 0.0
    assert step(f"```python\ndef {name}(v:\n```").reward == 0.0


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.told[0])
def test_operations_compute_what_they_write(operation):
    sample = {"x": 7, "xs": [3, 8, 5, 2], "s": "badce"}[operation.takes]
    for argument in operation.arguments:
        written = operation.written.format(v="value", n=argument)
        assert eval(written, {"value": sample}) == operation.computed(sample, argument), written


def test_agent_names_every_end():
    task = load_task("agent", options={"max_turns": 2})
    problem = task.problem(Split.TRAIN, 0)
    call = tool_call("lookup", key="fig")
    looping = task.start(problem)
    assert looping.step(call).outcome is None
    assert looping.step(call).outcome.reason == "turn limit"
    assert task.start(problem).step("done").outcome.reason == "no answer"
    assert task.start(problem).step("Answer: zero").outcome.reason == "wrong answer"


def test_agent_tools_answer_nonsense_with_a_sentence():
    episode = load_task("agent").start(load_task("agent").problem(Split.TRAIN, 0))
    for body in ("{", "[]", '{"name": "lookup"}', json.dumps({"name": "rm", "arguments": {}})):
        (message,) = episode.step(f"<tool_call>{body}</tool_call>").messages
        assert message.role == "tool" and message.content.startswith("error: ")


def test_agent_episodes_do_not_share_their_world():
    task = load_task("agent")
    problem = next(
        one for one in (task.problem(Split.TRAIN, index) for index in range(50)) if "Set " in one.messages[-1].content
    )
    path = next(iter(problem.facts["world"].files))
    before = dict(problem.facts["world"].files)
    task.start(problem).step(tool_call("write", path=path, text="gone"))
    assert problem.facts["world"].files == before


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("-5 - 6", "-11"),
        ("9 ** 9 ** 9", "error:"),
        ("__import__('os')", "error:"),
        ("1 +", "error:"),
    ],
)
def test_the_calculator_knows_sums_and_products_alone(expression, value):
    assert calculator(expression).startswith(value)


def test_the_calculator_refuses_long_expressions():
    assert calculator("+".join("1" * 60)).startswith("error: ")


def test_unknown_tasks_are_refused_by_name():
    with pytest.raises(
        UserError, match=r"no task 'maths'; did you mean math\? .*agent, code, humaneval, math, questions, reasoning"
    ):
        load_task("maths")
    with pytest.raises(UserError, match=r"no task 'xyz'; choose one of agent"):
        load_task("xyz")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("math", {"max_step": 3}, r"options of the task math: unknown key max_step; did you mean max_steps\?"),
        ("math", {"min_steps": 5}, r"min_steps 5 is above max_steps 3"),
        ("math", {"max_start": 90}, r"max_value 60 is below max_start 90"),
        ("code", {"min_steps": 6}, r"min_steps 6 is above max_steps 5"),
        ("code", {"sandbox": {"walls": 3}}, r"unknown key sandbox.walls"),
        ("agent", {"max_turns": 0}, r"max_turns should be greater than or equal to 1, got 0"),
        ("agent", {"max_items": 9}, r"max_items should be less than or equal to 4"),
        ("reasoning", {"dataset": 3}, r"options of the task reasoning: dataset should be a valid string"),
    ],
)
def test_options_that_cannot_be_are_named(task, options, message):
    with pytest.raises(UserError, match=message):
        load_task(task, options=options)


def test_a_wrong_answer_from_a_solved_world_is_told_apart():
    task = load_task("math")
    problem = task.problem(Split.TRAIN, 0)
    wrong = replace(problem, facts={**problem.facts, "answer": problem.facts["answer"] + 1})
    solution = task.demonstration(problem, 0)[-1].content
    assert task.start(problem).step(solution).outcome.reward == 1.0
    assert task.start(wrong).step(solution).outcome.reward == 0.0
