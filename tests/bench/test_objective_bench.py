"""The comparison of objectives: what its arms share, how it picks learning rates, that it goes on where it stopped."""

import json

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

from bebop.bench import objective_arms
from bebop.bench.objective_arms import Arm, ArmResult, read_result
from bebop.bench.objectives import best_rate, main, wider
from bebop.errors import UserError
from bebop.metrics import Mean
from bebop.models.policy import new_policy, save_policy
from bebop.models.tiny import base_config, tiny_path
from bebop.runs import RunDirectory
from bebop.training.mtp_config import TrainMTP


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    """A random policy, sharp enough to have something to learn."""
    torch.manual_seed(0)
    backbone = Qwen3_5ForCausalLM(base_config(["full_attention"] * 2)).eval()
    with torch.no_grad():
        backbone.get_output_embeddings().weight.mul_(6.0)
    path = tmp_path_factory.mktemp("policies") / "small"
    save_policy(new_policy(backbone, AutoTokenizer.from_pretrained(tiny_path())), path)
    return path


def words(policy_path, out, *more):
    return [
        f"policy={policy_path}",
        f"out={out}",
        "collect={tasks: [{name: math}, {name: code}], num_episodes: 14, max_turn_tokens: 12}",
        "num_tuning=4",
        "num_heldout=4",
        "start_steps=2",
        "steps=2",
        "per_step=4",
        "unroll.depths=3",
        "dtype=float32",
        "arms={lrs: [0.001, 0.002], seeds: [1, 2], without_warm_up: true}",
        *more,
    ]


def test_all_arms_are_run_once_and_told(policy_path, tmp_path, monkeypatch):
    out = tmp_path / "out"
    main(words(policy_path, out))
    record = json.loads((out / "results.json").read_text())
    names = [Arm(**one["arm"]).name for one in record["arms"]]
    tuned = [name for name in names if name.startswith("tuning")]
    # Two rates each, and one or two more beyond the end where the better of two is.
    assert 3 * 3 <= len(tuned) <= 3 * 4
    assert sum(name.startswith("from_start") for name in names) == 3 * 2
    assert sum(name.startswith("fresh") for name in names) == 2 * 2
    for one in record["arms"]:
        assert set(one["rates"]) == {"math", "code"}
        assert all(0 <= rate <= 1 for task in one["rates"].values() for rate in task.values())
        assert one["seconds_per_step"] > 0
    assert len(record["summary"]["e2e_tv"]["rejection_over_ce"]) == 2
    page = (out / "results.md").read_text()
    for heading in ("## Rejection", "## Every rule", "## From a fresh head, 4 steps", "## Learning rates"):
        assert heading in page
    assert record["provenance"][0]["command"]

    # Nothing is trained again; another seed adds its arms alone.
    monkeypatch.setattr(objective_arms, "train", lambda *_: pytest.fail("an arm was trained again"))
    main(words(policy_path, out))
    monkeypatch.undo()
    started = []
    begin = objective_arms.begin
    monkeypatch.setattr(objective_arms, "begin", lambda lab, arm: (started.append(arm), begin(lab, arm)))
    main(words(policy_path, out, "arms.seeds=[1,2,3]", "arms.without_warm_up=false"))
    assert {arm.seed for arm in started} == {3}
    with pytest.raises(UserError, match="holds a comparison with other settings"):
        main(words(policy_path, out, "steps=3"))


def test_arms_of_a_seed_start_alike_and_the_engine_plays_what_was_trained(policy_path, tmp_path):
    out = tmp_path / "out"
    arms = "arms={objectives: [kl, tv], lrs: [0.002], seeds: [1], fresh: [], played: 2}"
    main(words(policy_path, out, arms))
    (start,) = (out / "starts").iterdir()
    assert start.name == "seed1.safetensors"
    figures = read_result(out / "arms" / "from_start-kl-lr0.002-seed1" / "result.json").figures
    assert figures["math"]["rejection/acceptance_rate"].count > 0
    assert "## Played by the engine" in (out / "results.md").read_text()


def test_whole_trainings_from_a_fresh_head_have_all_the_steps_and_a_warm_up_where_one_is_needed(policy_path, tmp_path):
    out = tmp_path / "out"
    arms = "arms={objectives: [ce, e2e_tv], lrs: [0.002], seeds: [1], fresh: []}"
    main(words(policy_path, out, arms, "from_fresh=true"))
    assert not (out / "starts").exists()
    directories = [out / "arms" / f"from_start-{name}-lr0.002-seed1" for name in ("ce", "e2e_tv")]
    trained = [RunDirectory.open(one).config(TrainMTP) for one in directories]
    assert [one.steps for one in trained] == [4, 4]
    assert [one.loss.warm_up is None for one in trained] == [True, False]
    assert "4 steps of each objective from a fresh head" in (out / "results.md").read_text()


def test_a_kept_rollout_file_takes_the_place_of_the_collection(policy_path, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        main(words(policy_path, tmp_path / "out", f"rollouts={tmp_path / 'absent.jsonl'}"))


def result_of(lr, length):
    arm = Arm(kind="tuning", objective="kl", lr=lr, seed=0)
    figures = {"math": {"rejection/estimated_round_length": Mean(length, 1)}}
    return ArmResult(arm=arm, num_drafts=3, seconds_per_step=None, figures=figures)


def test_a_grid_grows_at_the_end_where_the_best_rate_is():
    assert best_rate([result_of(0.1, 2.0), result_of(0.2, 3.1), result_of(0.4, 2.9)]) == 0.2
    assert wider(0.2, [0.1, 0.2, 0.4]) == []
    assert wider(0.4, [0.1, 0.2, 0.4]) == [pytest.approx(0.8)]
    assert wider(0.1, [0.2, 0.1, 0.4]) == [pytest.approx(0.05)]
    assert result_of(0.1, 2.5).rate("rejection", "math") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arms.objectives=[e2e]", "did you mean"),
        ("arms.seeds=[0,1]", "tune on another"),
        ("rules=[block]", "must include rejection"),
        ("arms={fresh: [tv]}", "not tuned"),
    ],
)
def test_settings_that_cannot_be_are_refused(policy_path, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        main(words(policy_path, tmp_path / "out", change))
    assert not (tmp_path / "out").exists()
