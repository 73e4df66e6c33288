"""Playing episodes: plans come when they come, grading runs beside generation, and order stays what it was."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bebop.engines.base import Completion, DraftStats, Request, StopReason, TokenSource
from bebop.models.tiny import tiny_path
from bebop.tasks.base import Family, Message, Outcome, Problem, SingleTurn, Split, Turn
from bebop.tasks.chat import chat_of, encode
from bebop.tasks.episodes import EpisodePlan, EpisodeSettings, Rollout, Scoring, run_episodes

TOKENIZER: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_path())
CHAT = chat_of(TOKENIZER)
SETTINGS = EpisodeSettings()


class Parrot:
    """An engine of some rows that answers every prompt with its length, the oldest row first."""

    def __init__(self, num_rows: int, max_context: int = 10_000) -> None:
        self.num_rows = num_rows
        self.max_context = max_context
        self.log: list[str] = []

    def stream(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        rows: list[Request] = []
        is_open = True
        while is_open or rows:
            while is_open and len(rows) < self.num_rows:
                try:
                    request = next(requests)
                except StopIteration:
                    is_open = False
                    break
                if request is None:
                    break
                self.log.append(f"take {request.id}")
                rows.append(request)
            if rows:
                done = rows.pop(0)
                self.log.append(f"end {done.id}")
                yield answer(done)


def answer_tokens(prompt_length: int) -> tuple[int, ...]:
    return (*encode(TOKENIZER, str(prompt_length)), CHAT.ends["user"])


def answer(request: Request) -> Completion:
    tokens = answer_tokens(len(request.prompt_tokens))
    numbers = (0.0,) * len(tokens)
    return Completion(
        request_id=request.id,
        index=0,
        tokens=tokens,
        logprobs=numbers,
        raw_logprobs=numbers,
        entropies=numbers,
        sources=(TokenSource.SAMPLED,) * len(tokens),
        versions=(0,) * len(tokens),
        draft_logprobs=(None,) * len(tokens),
        overlaps=(None,) * len(tokens),
        stop_reason=StopReason.STOP_TOKEN,
        drafts=DraftStats(),
    )


class Steps:
    """An episode of several turns."""

    def __init__(self, num_turns: int) -> None:
        self.left = num_turns

    def step(self, completion: str) -> Turn:
        self.left -= 1
        if self.left:
            return Turn(messages=(Message(role="tool", content=completion),))
        return Turn(outcome=Outcome(reward=1.0, reason=completion))


class Mixed:
    """Problems with even numbers take one turn, the others three."""

    name = "mixed"
    family: Family = "agent"
    gate: threading.Event | None = None

    def problem(self, split: Split, index: int) -> Problem:
        message = Message(role="user", content="a" * index)
        return Problem(task=self.name, split=split, index=index, messages=(message,), facts={})

    def start(self, problem: Problem) -> SingleTurn | Steps:
        return Steps(3) if problem.index % 2 else SingleTurn(self.grade)

    def grade(self, completion: str) -> Outcome:
        if self.gate is not None:
            self.gate.wait(10)
        return Outcome(reward=1.0, reason=completion)

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        return problem.messages


def plans(task: Mixed, count: int) -> list[EpisodePlan]:
    return [EpisodePlan(task=task, problem=task.problem(Split.TRAIN, index), seed=0) for index in range(count)]


def play(engine: Parrot, wanted: Sequence[EpisodePlan], scoring: Scoring | None = None) -> list[Rollout]:
    return list(run_episodes(engine, CHAT, wanted, SETTINGS, scoring))  # type: ignore[arg-type]


def outcomes(rollouts: list[Rollout]) -> dict[str, tuple[int, str]]:
    return {one.plan.problem.id: (len(one.turns), one.outcome.reason) for one in rollouts}


def test_grading_in_a_pool_changes_neither_outcomes_nor_what_a_batch_is_made_of():
    here, beside = Parrot(3), Parrot(3)
    with ThreadPoolExecutor(2) as pool:
        first = play(here, plans(Mixed(), 9))
        second = play(beside, plans(Mixed(), 9), Scoring(pool=pool))
    assert len(first) == 9
    assert outcomes(first) == outcomes(second)
    assert here.log == beside.log


@pytest.mark.parametrize("num_missing", [0, 1])
def test_a_turn_for_which_the_context_has_no_room_ends_its_episode_alone(num_missing: int):
    longest = max(len(one.tokens) for one in play(Parrot(3), plans(Mixed(), 4)))
    last_turn = longest - len(answer_tokens(longest))
    rollouts = play(Parrot(3, max_context=last_turn + 1 - num_missing), plans(Mixed(), 4))
    assert len(rollouts) == 4
    cut_off = [one for one in rollouts if one.outcome == Outcome(reward=0.0, reason="context full")]
    assert [len(one.turns) for one in cut_off] == [2] * num_missing


def test_generation_goes_on_while_an_answer_is_graded():
    task, engine = Mixed(), Parrot(1)
    task.gate = threading.Event()
    rollouts: list[Rollout] = []
    with ThreadPoolExecutor(1) as pool:
        for rollout in run_episodes(engine, CHAT, plans(task, 4), SETTINGS, Scoring(pool=pool)):  # type: ignore[arg-type]
            rollouts.append(rollout)
            task.gate.set()  # the grader of problem 0 has been waiting for the end of problem 1
    assert rollouts[0].plan.problem.index == 1
    assert len(rollouts) == 4


def test_unordered_scoring_steps_every_episode_in_the_pool():
    stepping = set()

    class Watched(Steps):
        def step(self, completion: str) -> Turn:
            stepping.add(threading.current_thread())
            return super().step(completion)

    task = Mixed()
    task.start = lambda problem: Watched(2)  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        assert len(play(Parrot(2), plans(task, 4), Scoring(pool=pool, ordered=False))) == 4
    assert threading.main_thread() not in stepping


def test_plans_that_are_not_ready_end_the_play_when_nothing_is_left():
    first, second = plans(Mixed(), 2)
    wanted = iter([first, None, None, None, None, None, second])
    rollouts = list(run_episodes(Parrot(2), CHAT, wanted, SETTINGS))  # type: ignore[arg-type]
    assert [one.plan for one in rollouts] == [first]
    assert second in list(wanted)
