"""What goes over the wire comes out equal, and a cut wire is the end, not an error."""

import math
import socket

from bebop.core.sampling import Sampling
from bebop.engines.base import Completion, DraftStats, StopReason, TokenSource
from bebop.rl.config import MTPConfig, RolloutConfig
from bebop.rl.jobs import evaluation_jobs, group_job
from bebop.rl.messages import Channel, Finished, Load, Play, PlayedTurn, Start, Weights, decode, encode
from bebop.rl.records import Busy
from bebop.tasks.base import Outcome, Split
from bebop.tasks.episodes import EpisodePlan
from bebop.tasks.registry import TaskChoice, load_tasks

COMPLETION = Completion(
    request_id="math/train/0/7/0",
    index=0,
    tokens=(5, 9),
    logprobs=(-0.1, -1 / 3),
    raw_logprobs=(-0.1, -1e-30),
    entropies=(0.0, 2.0),
    sources=(TokenSource.DRAFTED, TokenSource.CORRECTED),
    versions=(3, 4),
    draft_logprobs=(None, -math.inf),
    overlaps=(None, 0.25),
    stop_reason=StopReason.STOP_TOKEN,
    drafts=DraftStats(rounds=1, emitted=2, drafted=(1, 1), reached=(1, 1), accepted=(1, 0), overlaps=(0.5, 0.25)),
)
FINISHED = Finished(
    job="group/3",
    attempt=1,
    turns=(PlayedTurn(given_tokens=(1, 2), completion=COMPLETION),),
    outcome=Outcome(reward=1.0, reason="solved"),
    scoring_seconds=0.5,
    generation=Busy(seconds=0.25, row_seconds=2.0),
)
START = Start(
    policy="tiny",
    rollout=RolloutConfig(rows=3, top_p=0.9),
    mtp=MTPConfig(rule="coupled", k="auto"),
    tasks=(TaskChoice(name="math", options={"max_steps": 3}),),
    seed=7,
    ordered=True,
    weights=Weights(version=2, path="w"),
)


def test_messages_come_out_as_they_went_in():
    jobs = (group_job(3, ["math", "code"], 4, 0), *evaluation_jobs(0, ["math"], 2, 0))
    for message in (START, Play(jobs=jobs), Load(weights=Weights(version=1, path="w")), FINISHED):
        assert decode(encode(message)) == message


def test_a_finished_episode_is_the_rollout_of_its_plan():
    task = load_tasks(START.tasks, 7)["math"]
    plan = EpisodePlan(task=task, problem=task.problem(Split.TRAIN, 0), seed=7)
    rollout = FINISHED.rollout(plan)
    assert rollout.plan is plan
    assert rollout.tokens == (1, 2, 5, 9)
    assert rollout.turns[0].completion == COMPLETION
    assert START.rollout.sampling == Sampling(top_p=0.9)


def test_large_messages_cross_and_a_cut_frame_is_the_end():
    ours, theirs = socket.socketpair()
    sender, receiver = Channel(ours), Channel(theirs)
    sender.send(FINISHED)
    frame = encode(FINISHED)
    ours.sendall(len(frame).to_bytes(4, "big") + frame[: len(frame) // 2])
    ours.close()
    assert receiver.receive() == FINISHED
    assert receiver.receive() is None
