"""Whoever plays or shows tasks tells the policy whether to think: every place that takes the setting obeys it."""

import json
import shutil

import pytest

from bebop.cli import train_sft
from bebop.cli.main import run
from bebop.config import load_config
from bebop.core.sampling import Sampling
from bebop.models.policy import Policy, load_policy
from bebop.models.tiny import tiny_path
from bebop.rl.config import MTPConfig, RolloutConfig
from bebop.rl.messages import Start
from bebop.rl.rollout_worker import RolloutWorker
from bebop.tasks.base import Split
from bebop.tasks.evaluation import plans
from bebop.tasks.registry import TaskChoice, load_task
from bebop.training.collect import play
from bebop.training.mtp_config import CollectConfig
from bebop.training.mtp_eval import EvalSettings, played
from bebop.training.sft import TrainSFT
from bebop.training.teacher_forced import Questions

SWITCHED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
NOT_THINKING = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = shutil.copytree(tiny_path(), tmp_path_factory.mktemp("policies") / "thinker")
    (path / "chat_template.jinja").write_text(SWITCHED)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    return path


@pytest.fixture(scope="module")
def policy(directory) -> Policy:
    return load_policy(directory)


@pytest.fixture
def wanted():
    return list(plans([load_task("math")], Split.TRAIN, range(1)))


def test_rollouts_for_the_head(policy: Policy, wanted, tmp_path) -> None:
    play(policy, CollectConfig(thinking=False, max_turn_tokens=2), 1.0, wanted, tmp_path / "part", lambda *_: None)
    row = json.loads((tmp_path / "part").read_text())
    assert policy.tokenizer is not None and NOT_THINKING in policy.tokenizer.decode(row["tokens"])


def test_rollouts_that_judge_a_head(policy: Policy, wanted) -> None:
    questions = Questions(sampling=Sampling(), rules=["rejection"])
    settings = EvalSettings(questions=questions, max_turn_tokens=2, thinking=False)
    (rollout,) = played(policy, "rejection", wanted, settings, lambda: None)
    assert policy.tokenizer is not None and NOT_THINKING in policy.tokenizer.decode(rollout.turns[0].given_tokens)


def test_transcripts_of_supervised_tuning(policy: Policy) -> None:
    settings = load_config(TrainSFT, None, ["policy=x", "output=o", "run=r", "data.thinking=false", "data.per_step=1"])
    (transcript,) = train_sft.open_source(settings, policy)(0)
    assert policy.tokenizer is not None and NOT_THINKING in policy.tokenizer.decode(transcript.tokens)


def test_workers_of_reinforcement_learning(directory) -> None:
    worker = RolloutWorker(
        Start(
            policy=str(directory),
            rollout=RolloutConfig(thinking=False, rows=1),
            mtp=MTPConfig(mode="none"),
            tasks=(TaskChoice(name="math"),),
            seed=0,
            ordered=True,
            weights=None,
        )
    )
    assert worker.chat.closes_thought


@pytest.mark.parametrize("command", ["eval-policy", "eval-mtp"])
def test_the_evaluations(directory, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(tokenizer: object, thinking: bool | None = None) -> None:
        asked.append(thinking)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bebop.cli.{command.replace('-', '_')}.chat_of", record)
    for options in ([], ["--thinking"], ["--no-thinking"]):
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run([command, str(directory), "--tasks", "math", "--problems", "2", *options])
    assert asked == [None, True, False]
