"""Estimates along rollouts equal what rounds do: exactly over small vocabularies, and within noise of the engine.

Shapes: N chains, K depths, V vocabulary.
"""

import copy
import dataclasses
import itertools
import math
import random

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.core.sampling import Sampling
from bebop.errors import UserError
from bebop.models.policy import new_policy
from bebop.models.tiny import base_config, tiny_path
from bebop.runs import Mean
from bebop.tasks.base import Split
from bebop.tasks.evaluation import plans
from bebop.tasks.registry import load_task
from bebop.training.acceptance_report import check_same_target, evaluate_task
from bebop.training.bootstrap import differences, figures
from bebop.training.calibration import TEMPERATURES
from bebop.training.mtp_eval import EvalSettings, starts_of_turns
from bebop.training.teacher_forced import FATES, Laws, Questions, round_starts

V, K = 4, 3


def all_chains():
    """Random laws after every prefix, as one chain per sequence of K tokens, and the target's chance of each."""
    torch.manual_seed(5)
    chains = list(itertools.product(range(V), repeat=K))
    of_prefix = {
        prefix: (torch.randn(2, V, dtype=torch.double) * 1.5).softmax(-1)
        for length in range(K)
        for prefix in itertools.product(range(V), repeat=length)
    }
    target_NKV, draft_NKV = (
        torch.stack([torch.stack([of_prefix[chain[:k]][which] for k in range(K)]) for chain in chains])
        for which in (0, 1)
    )
    laws = Laws(target_NKV=target_NKV, draft_NKV=draft_NKV, tokens_NK=torch.tensor(chains))
    return laws, laws.target_token_NK.prod(-1)


@pytest.mark.parametrize("rule", list(FATES))
def test_a_rule_accepts_on_average_what_it_keeps_alive(rule):
    """Over the target's own chains the two readings of "draft k is accepted" have one mean at every depth."""
    laws, chance_N = all_chains()
    fate = FATES[rule](laws)
    assert fate.alive_NK.max() <= 1 + 1e-12 and (fate.alive_NK.diff(dim=-1) <= 1e-12).all()
    torch.testing.assert_close(chance_N @ fate.accepted_NK, chance_N @ fate.alive_NK, atol=1e-12, rtol=0)


def test_rejection_accepts_the_mass_that_the_laws_share():
    laws, chance_N = all_chains()
    shared_NK = torch.minimum(laws.target_token_NK, laws.draft_token_NK).cumprod(-1)
    # Every prefix of length k occurs in V^(K-k) chains.
    expected_K = torch.stack([shared_NK[:, k].sum() / V ** (K - 1 - k) for k in range(K)])
    torch.testing.assert_close(chance_N @ FATES["rejection"](laws).accepted_NK, expected_K, atol=1e-12, rtol=0)
    mean = {rule: (chance_N @ fate(laws).accepted_NK).sum() for rule, fate in FATES.items()}
    assert mean["coupled"] < mean["rejection"] < mean["block"]


def test_rounds_start_where_the_round_before_ended():
    always, never = torch.ones(7, K), torch.zeros(7, K)
    assert round_starts(always).tolist() == [1, 0, 0, 0, 1, 0, 0]
    assert round_starts(never).tolist() == [1] * 7
    torch.manual_seed(0)
    alive_AK = torch.rand(5, 2).cumprod(-1)

    def rounds(anchor, chance):
        """Chances of every way to go on, one by one."""
        if anchor >= 5:
            return
        found[anchor] += chance
        first, second = alive_AK[anchor].tolist()
        for accepted, probability in enumerate((1 - first, first - second, second)):
            rounds(anchor + accepted + 1, chance * probability)

    found = [0.0] * 5
    rounds(0, 1.0)
    assert round_starts(alive_AK).tolist() == pytest.approx(found, rel=1e-6)


def test_every_turn_begins_a_round_of_its_own():
    assert starts_of_turns([4, 5, 6, 9, 10], torch.ones(5, 3)).tolist() == [1, 0, 0, 1, 0]
    assert len(starts_of_turns([], torch.ones(0, 3))) == 0


def test_figures_are_sums_over_sums_with_an_interval_over_episodes():
    tallies = [{"x": Mean(1.0, 1)}, {"x": Mean(30.0, 60)}, {"y": Mean(2.0, 4)}]
    found = figures(tallies)
    assert found["x"].value == pytest.approx(31 / 61) and found["y"].value == 0.5
    assert found["x"].low == 0.5 and found["x"].high == 1.0
    assert found["y"].low == found["y"].high == 0.5


def test_differences_are_of_the_same_episodes():
    """What all episodes share cancels, however much they differ from one another."""
    rng = random.Random(3)
    lengths = [rng.uniform(1, 4) for _ in range(40)]
    better, worse = ([{"x": Mean(one + more, 1)} for one in lengths] for more in (0.05, 0.0))
    found = differences(better, worse)["x"]
    assert found.value == pytest.approx(0.05) and found.low == pytest.approx(0.05) and found.high == pytest.approx(0.05)
    alone = figures(better)["x"]
    assert alone.high - alone.low > 0.3, "unpaired intervals would hide it"
    assert differences(worse, better)["x"].value == pytest.approx(-0.05)


def test_a_difference_without_counts_is_not_a_number():
    assert math.isnan(differences([{"x": Mean()}], [{"x": Mean(1.0, 1)}])["x"].low)


@pytest.fixture(scope="module")
def policy():
    """A random policy sharp enough that drafts survive, and its fresh head."""
    torch.manual_seed(0)
    backbone = Qwen3_5ForCausalLM(base_config(["full_attention"] * 2)).float().eval()
    with torch.no_grad():
        backbone.get_output_embeddings().weight.mul_(12.0)
    return new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path()))


def test_estimates_agree_with_what_the_engine_plays(policy):
    questions = Questions(sampling=Sampling(), rules=list(FATES), draft_temperatures=TEMPERATURES)
    settings = EvalSettings(questions=questions, num_drafts=3, rows=16, max_turn_tokens=32)
    wanted = list(plans([load_task("math")], Split.HELDOUT, range(16)))
    result = evaluate_task(policy, "math", wanted, settings, lambda: None)
    assert result.num_episodes == 16
    for rule in FATES:
        played, promised = (result.figures[f"{rule}/{name}"] for name in ("emitted_per_round", "estimated_emitted"))
        spread = math.hypot(played.high - played.low, promised.high - promised.low) / 4
        assert played.value > 1.05, "drafts are accepted at all"
        assert abs(played.value - promised.value) < 4 * spread + 0.01, rule
        rate, length = (result.figures[f"{rule}/{name}"] for name in ("acceptance_rate", "accept_length"))
        assert length.value == pytest.approx(1 + 3 * rate.value)
        assert rate.low <= rate.value <= rate.high
    assert result.draft_temperatures is not None and len(result.draft_temperatures) == 3
    figures_of = result.figures
    calibrated, plain = (figures_of[f"{name}/estimated_round_length"].value for name in ("calibrated", "uncalibrated"))
    assert 1 < calibrated < 4 and 1 < plain < 4
    assert 0 < figures_of["prefers_rejection@1"].value <= 1
    assert 0 < figures_of["overlap@1"].value < 1 and figures_of["target_entropy"].value > 0


def test_another_head_is_judged_along_the_same_rollouts(policy):
    """A head differs from itself by nothing, and from another by what the two figures differ."""
    settings = EvalSettings(
        questions=Questions(sampling=Sampling(), rules=["rejection"], draft_temperatures=TEMPERATURES),
        num_drafts=3,
        rows=16,
        max_turn_tokens=32,
    )
    other = dataclasses.replace(policy, head=copy.deepcopy(policy.head))
    with torch.no_grad():
        other.head.layer.mlp.down_proj.weight.mul_(3.0)
    wanted = list(plans([load_task("math")], Split.HELDOUT, range(8)))
    check_same_target(policy, {"other": other})
    found = evaluate_task(policy, "math", wanted, settings, lambda: None, {"same": policy, "other": other})
    for name, difference in found.others["same"].differences.items():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0), name
        assert found.others["same"].figures[name] == found.figures[name]
    length = "rejection/estimated_round_length"
    of_other, difference = found.others["other"].figures[length], found.others["other"].differences[length]
    assert difference.value == pytest.approx(found.figures[length].value - of_other.value) and difference.value != 0
    assert difference.low <= difference.value <= difference.high


def test_another_policy_is_no_other_head(policy):
    changed = dataclasses.replace(policy, backbone=copy.deepcopy(policy.backbone))
    with torch.no_grad():
        changed.backbone.model.norm.weight.add_(0.01)
    with pytest.raises(UserError, match="changed is another policy \\(backbone not the same\\)"):
        check_same_target(policy, {"changed": changed})


def test_estimates_know_what_the_head_may_not_draft(policy):
    """Played and promised agree with a draft vocabulary too, and differ from those without one."""
    few = dataclasses.replace(policy, draft_vocabulary=tuple(range(0, policy.config.vocab_size, 2)))
    settings = EvalSettings(
        questions=Questions(sampling=Sampling(), rules=["rejection"]), num_drafts=3, rows=16, max_turn_tokens=32
    )
    wanted = list(plans([load_task("math")], Split.HELDOUT, range(16)))
    whole, part = (evaluate_task(one, "math", wanted, settings, lambda: None).figures for one in (policy, few))
    assert part["overlap@1"].value < 0.8 * whole["overlap@1"].value
    played, promised = (part[f"rejection/{name}"] for name in ("emitted_per_round", "estimated_emitted"))
    spread = math.hypot(played.high - played.low, promised.high - promised.low) / 4
    assert abs(played.value - promised.value) < 4 * spread + 0.01
