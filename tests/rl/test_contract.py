"""A publication that leaves a worker with another head, embedding or lm_head is caught, and what differs is named."""

import copy
import dataclasses
import json

import pytest
import torch

from bebop.engines.base import DraftStats
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.engines.embedded.weights import copy_weights
from bebop.errors import UserError
from bebop.rl.contract import AcceptLengthWatch, HeadContract, accept_length, held_digests
from bebop.rl.learner import Learner
from bebop.rl.learner_config import LearnerConfig, OnlineHeadConfig
from bebop.training.optimiser import OptimiserConfig
from tests.models.tiny_models import make_policy
from tests.rl.rollouts import sampled_groups, small_policy

FAST = OptimiserConfig(lr=1e-2, schedule="constant", warmup_steps=0)


class Run:
    """A learner, a worker's policy behind an engine, and the contract between them."""

    def __init__(self, mode="frozen", *, tied=False, dtype=torch.float32):
        self.learner_policy = small_policy(tied=tied)
        self.worker = copy.deepcopy(self.learner_policy)
        self.worker.backbone.to(dtype)
        self.worker.head.to(dtype)
        head = OnlineHeadConfig(optimiser=FAST) if mode == "online" else None
        self.learner = Learner(self.learner_policy, LearnerConfig(optimiser=FAST), num_updates=9, head=head)
        self.contract = HeadContract(self.learner_policy, mode, dtype)
        self.engine = EmbeddedEngine(self.worker, EmbeddedOptions(num_draft_tokens=3))

    def publish(self, change=lambda tensors: tensors):
        """Update, publish what ``change`` makes of the tensors, and take the worker's report."""
        self.learner.update(sampled_groups(small_policy(tied=True), [[0, 1, 0, 1]], num_draft_tokens=3))
        tensors = self.learner.tensors()
        self.contract.expect(tensors)
        self.engine.load_weights(self.learner.version, change(dict(tensors)))

    def check(self):
        # As it comes out of a pipe.
        self.contract.check("worker 1", self.learner.version, json.loads(json.dumps(held_digests(self.worker))))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mode", ["none", "frozen", "online"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_publication_passes(mode, tied, dtype):
    run = Run(mode, tied=tied, dtype=dtype)
    run.contract.expect(run.learner.tensors())
    run.check()
    for _ in range(2):
        run.publish()
        run.check()


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_a_trained_head_is_published_with_its_buffers(name):
    """The routing's correction bias is no parameter, and a worker holds it like the rest."""
    policy, worker = make_policy(name), make_policy(name)
    learner = Learner(policy, LearnerConfig(optimiser=FAST), num_updates=9, head=OnlineHeadConfig(optimiser=FAST))
    contract = HeadContract(policy, "online", torch.float32)
    contract.expect(learner.tensors())
    copy_weights(worker, learner.tensors())
    contract.check("worker 0", 0, held_digests(worker))


def test_a_learner_that_rounds_more_than_its_workers_is_told_so():
    policy = small_policy()
    worker = copy.deepcopy(policy)
    policy.backbone.to(torch.bfloat16)
    policy.head.to(torch.bfloat16)
    contract = HeadContract(policy, "frozen", torch.float32)
    contract.expect(Learner(policy, LearnerConfig(optimiser=FAST), num_updates=9).tensors())
    with pytest.raises(UserError, match="set dtype and rollout"):
        contract.check("worker 0", 0, held_digests(worker))


@pytest.mark.parametrize("mode", ["frozen", "online"])
def test_one_flipped_head_tensor_is_caught_and_named(mode):
    run = Run(mode)
    run.publish()
    with torch.no_grad():
        run.worker.head.layer.mlp.up_proj.weight[0, 0].neg_()
    with pytest.raises(
        UserError, match=r"worker 1 .*publication 1: it has another head \(layer\.mlp\.up_proj\.weight\)"
    ):
        run.check()


def test_a_head_that_was_overwritten_in_a_publication_is_caught():
    run = Run()
    run.publish(lambda tensors: {**tensors, "head.fuse.weight": torch.zeros_like(run.worker.head.fuse.weight)})
    with pytest.raises(UserError, match=r"another head \(fuse\.weight\)"):
        run.check()


def test_a_stale_lm_head_is_caught_and_named():
    run = Run()
    run.publish(lambda tensors: {name: one for name, one in tensors.items() if name != "lm_head.weight"})
    with pytest.raises(
        UserError, match=r"worker 1 .*publication 1: it has another lm_head \(weight\) than the learner"
    ):
        run.check()
    run.publish()
    run.check()


@pytest.mark.parametrize("tied", [False, True])
def test_a_stale_embedding_is_caught_and_named(tied):
    run = Run(tied=tied)
    run.publish(lambda tensors: {name: one for name, one in tensors.items() if "embed" not in name})
    also = r" and another lm_head \(weight\)" if tied else ""
    with pytest.raises(UserError, match=rf"another embedding \(weight\){also} than the learner"):
        run.check()


def test_a_dropped_head_is_caught_and_named():
    run = Run()
    run.publish()
    run.worker = dataclasses.replace(run.worker, head=None)
    with pytest.raises(UserError, match=r"worker 1 has lost its MTP head: after publication 1 it holds none"):
        run.check()


def test_a_missing_head_tensor_is_named_and_many_are_counted():
    run = Run()
    run.publish()
    held = held_digests(run.worker)
    num_tensors = len(held["head"])
    held["head"] = {name: digest[::-1] for name, digest in held["head"].items()}
    del held["head"]["fuse.weight"]
    with pytest.raises(UserError, match=rf"another head \(.*fuse\.weight.* and {num_tensors - 3} more\)"):
        run.contract.check("worker 1", 1, held)


def test_a_frozen_head_that_the_learner_changed_is_caught():
    run = Run(tied=True)
    with torch.no_grad():
        run.learner_policy.head.output_norm.weight += 1
    with pytest.raises(UserError, match=r"frozen .*\(output_norm\.weight\); start the same command again"):
        run.publish()


def test_a_worker_without_a_head_is_fine_where_nothing_is_drafted():
    run = Run("none")
    run.publish()
    run.worker = dataclasses.replace(run.worker, head=None)
    run.check()


def drafts(num_rounds, num_accepted):
    return DraftStats(rounds=num_rounds + 5, drafted=(num_rounds,), reached=(num_rounds,), accepted=(num_accepted,))


def test_drafts_that_are_never_accepted_stop_the_run_after_three_publications():
    watch = AcceptLengthWatch()
    watch.observe(1, drafts(100, 1))
    watch.observe(2, drafts(100, 4))
    watch.observe(3, drafts(100, 5))
    watch.observe(4, drafts(100, 1))
    watch.observe(5, DraftStats(rounds=9))
    watch.observe(6, drafts(100, 2))
    with pytest.raises(UserError, match=r"accept length 1.010 after 4, 1.020 after 6, 1.000 after 7 \(least 1.05\)"):
        watch.observe(7, drafts(100, 0))


def test_a_dead_draft_is_caught_in_rollouts():
    run = Run(tied=True)
    watch = AcceptLengthWatch()
    assert accept_length(played(run)).value > 1.2
    with torch.no_grad():
        # Zero-centred: the scale turns from about 1 to about -20, so it drafts what it thinks least likely.
        run.worker.head.output_norm.weight.fill_(-21)
    for version in (1, 2):
        watch.observe(version, played(run))
    with pytest.raises(UserError, match="no longer drafts what the policy samples"):
        watch.observe(3, played(run))


def played(run):
    groups = sampled_groups(run.worker, [[0] * 4] * 4, num_draft_tokens=3)
    return sum((one.drafts for group in groups for one in group.rollouts), DraftStats())
