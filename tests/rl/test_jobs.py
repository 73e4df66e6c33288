"""The data of a run are a function of its settings: nothing twice, nothing never, nothing held out."""

from bebop.rl.jobs import evaluation_jobs, group_job
from bebop.tasks.base import Split
from bebop.tasks.registry import TaskChoice, load_tasks
from bebop.tasks.turns import task_turns

NAMES = ["math", "code", "agent"]


def test_every_group_is_another_problem_and_tasks_take_turns():
    jobs = [group_job(number, NAMES, 4, seed=1) for number in range(60)]
    assert len({(job.task, job.index) for job in jobs}) == 60
    assert [job.task for job in jobs[:4]] == ["math", "code", "agent", "math"]
    assert {job.split for job in jobs} == {Split.TRAIN}
    assert all(len(set(job.seeds)) == 4 for job in jobs)


def test_shares_say_how_often_a_task_has_its_turn():
    assert task_turns({"math": 1, "code": 1, "agent": 1}) == tuple(NAMES)
    turns = task_turns({"math": 1, "code": 2, "agent": 3})
    assert turns == ("agent", "code", "math", "agent", "code", "agent")
    jobs = [group_job(number, turns, 4, seed=1) for number in range(60)]
    assert [sum(job.task == name for job in jobs) for name in NAMES] == [10, 20, 30]
    for name in NAMES:
        assert [job.index for job in jobs if job.task == name] == list(range(sum(job.task == name for job in jobs)))


def test_seeds_follow_the_run_and_the_place():
    assert group_job(5, NAMES, 4, seed=1) == group_job(5, NAMES, 4, seed=1)
    seeds = {seed for run in range(3) for number in range(20) for seed in group_job(number, NAMES, 4, run).seeds}
    assert len(seeds) == 3 * 20 * 4


def test_evaluations_play_the_same_held_out_problems_with_the_same_draws():
    first, later = evaluation_jobs(0, NAMES, 5, seed=1), evaluation_jobs(40, NAMES, 5, seed=1)
    assert [(one.task, one.index, one.seeds) for one in first] == [(one.task, one.index, one.seeds) for one in later]
    assert len({one.id for one in first + later}) == 30
    assert {one.split for one in first} == {Split.HELDOUT}


def test_plans_are_the_attempts_of_the_job():
    tasks = load_tasks((TaskChoice(name="math"),), seed=2)
    job = group_job(7, ["math"], 3, seed=2)
    plans = job.plans(tasks)
    assert [plan.seed for plan in plans] == list(job.seeds)
    assert {plan.problem.id for plan in plans} == {"math/train/7"}
