"""Questions of your own with known answers, out of a file: one turn each, graded on the final answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bebop.config import ConfigModel
from bebop.errors import UserError
from bebop.rows import read_rows, shuffled
from bebop.tasks.answers import INSTRUCTION, extract_answer, require_math_verify
from bebop.tasks.base import Family, Message, Outcome, Problem, SingleTurn, Split, as_message, split_of
from bebop.tasks.equality import is_same_answer
from bebop.tasks.verifier import Verifier


class QuestionsConfig(ConfigModel):
    """Which file, and what its columns are called."""

    file: Path
    """JSONL, Parquet, or a directory that `datasets` saved."""
    heldout: Path | None = None
    """Questions to measure by; none: a tenth of ``file``'s, by a hash of the question. Those that are in both files are
    not trained on."""
    question: str = "question"
    """Column of the question: a text, or a chat ``[{"role": ..., "content": ...}]`` that ends with a user's message."""
    answer: str = "answer"
    """Column of the final answer, a text or a number."""
    solution: str | None = None
    """Column of a worked solution that ends with the answer, for `bebop train-sft`."""
    answer_after: str = ""
    """The answer is what follows this in its column, such as ``"####"`` in GSM8K's; without it, the whole column."""
    system: str = ""
    """A system message before every question."""
    instruction: str = INSTRUCTION
    """Written behind every question. Graded is what follows the last ``Answer:``, else the last ``\\\\boxed{}``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One row."""

    messages: tuple[Message, ...]
    identity: str
    """What the row asks, whatever is written around it; decides its split."""
    answer: str
    solution: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionsTask:
    """The questions of a file, in an order of their own in every round through it."""

    config: QuestionsConfig
    questions: Mapping[Split, tuple[Question, ...]]
    seed: int = 0
    family: Family = "math"
    verifier: Verifier = field(default_factory=Verifier, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The file's, without its ending."""
        return self.config.file.stem

    def problem(self, split: Split, index: int) -> Problem:
        """Train questions come round and round; UserError for a held-out one that is not there."""
        mine = self.questions[split]
        turn, place = divmod(index, len(mine))
        if turn and split is Split.HELDOUT:
            raise UserError(f"{self.name} has {len(mine)} held-out questions; ask for fewer, or set its option heldout")
        question = mine[shuffled(len(mine), self.seed, turn)[place]]
        return Problem(
            task=self.name, split=split, index=index, messages=question.messages, facts={"question": question}
        )

    def start(self, problem: Problem) -> SingleTurn:
        return SingleTurn(lambda completion: self.grade(completion, problem.facts["question"].answer))

    def grade(self, completion: str, reference: str) -> Outcome:
        """Reward 1 if the final answer, one line unless the reference has more, is the reference."""
        answer = extract_answer(completion)
        if answer is None:
            return Outcome(reward=0.0, reason="no answer")
        first = answer if "\n" in reference else answer.splitlines()[0]
        right = is_same_answer(reference, first, self.verifier.same)
        return Outcome(reward=float(right), reason="solved" if right else "wrong answer")

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The worked solution, which has one wording whatever the ``seed``, and the answer where it does not end so."""
        question = problem.facts["question"]
        text = question.solution
        if text is None:
            raise UserError(f"{self.name} has no worked solutions to learn from; name their column as `solution`")
        if not self.grade(text, question.answer).reward:
            text = f"{text.rstrip()}\nAnswer: {question.answer}"
        return (*problem.messages, Message(role="assistant", content=text))


def load_questions(config: QuestionsConfig, seed: int) -> QuestionsTask:
    """UserError naming the row that is no question, or the split that has none; or without ``math-verify``."""
    require_math_verify("questions")
    found = list(_read(config.file, config))
    if config.heldout is None:
        train = [one for one in found if split_of(one.identity) is Split.TRAIN]
        heldout = [one for one in found if split_of(one.identity) is Split.HELDOUT]
    else:
        heldout = list(_read(config.heldout, config))
        measured = {one.identity for one in heldout}
        train = [one for one in found if one.identity not in measured]
    for split, some in ((Split.TRAIN, train), (Split.HELDOUT, heldout)):
        if not some:
            raise UserError(f"{config.file} leaves no {split} questions; give more rows, or another file as `heldout`")
    questions = {Split.TRAIN: tuple(train), Split.HELDOUT: tuple(heldout)}
    return QuestionsTask(config=config, questions=questions, seed=seed)


def _read(path: Path, config: QuestionsConfig) -> Iterable[Question]:
    for where, row in read_rows(path):
        yield _question(row, where, config)


def _question(row: Any, where: str, config: QuestionsConfig) -> Question:
    wanted = [config.question, config.answer, *([config.solution] if config.solution else [])]
    missing = [one for one in wanted if not isinstance(row, Mapping) or row.get(one) is None]
    if missing:
        has = ", ".join(row) if isinstance(row, Mapping) else "no columns"
        raise UserError(f"{where} has no {missing[0]!r}, it has {has}; name the column with the task's options")
    answer = _answer(row[config.answer], where, config)
    if config.answer_after:
        _, marker, answer = answer.rpartition(config.answer_after)
        if not marker:
            raise UserError(f"{where} has no {config.answer_after!r} in {config.answer!r}; correct `answer_after`")
    if not answer.strip():
        raise UserError(f"{where} has an empty {config.answer!r}; leave the row out")
    asked = _messages(row[config.question], where, config)
    *before, last = asked
    system = [Message(role="system", content=config.system)] if config.system else []
    return Question(
        messages=(*system, *before, Message(role="user", content=last.content + config.instruction)),
        identity="\n".join(one.content for one in asked),
        answer=answer.strip(),
        solution=str(row[config.solution]) if config.solution else None,
    )


def _answer(value: Any, where: str, config: QuestionsConfig) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise UserError(f"{where}: {config.answer!r} is {value!r}; give a text or a number")
    return str(value)


def _messages(asked: Any, where: str, config: QuestionsConfig) -> tuple[Message, ...]:
    chat = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    try:
        messages = [as_message(one) for one in chat]
        "".join(one.content for one in messages).encode()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {config.question!r} is neither a text nor a chat of role and content") from error
    if not messages or messages[-1].role != "user":
        raise UserError(f"{where}: {config.question!r} does not end with a user's message")
    return tuple(messages)
