"""The policies that come with the package: what the shipped weights are, and that both can be played with."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from bebop.core.sampling import Sampling
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.models.policy import load_policy
from bebop.models.tiny import tiny_path
from bebop.tasks.agent_worlds import ITEMS, PATHS, SETTINGS
from bebop.tasks.base import Split
from bebop.tasks.chat import chat_of
from bebop.tasks.episodes import EpisodeSettings, run_episodes
from bebop.tasks.evaluation import plans, score
from bebop.tasks.registry import load_task


@pytest.fixture(scope="module")
def tiny():
    return load_policy("tiny", dtype=torch.float32, strict=True)


def test_the_shipped_weights_are_small_and_complete(tiny):
    files = {file.name: file.stat().st_size for file in tiny_path().iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "bebop.json", "provenance.json"} <= set(files)
    assert sum(files.values()) < 12e6
    config = json.loads((tiny_path() / "config.json").read_text())
    assert (config["model_type"], config["mtp_num_hidden_layers"]) == ("qwen3_5_text", 1)
    assert config["architectures"] == ["Qwen3_5ForCausalLM"]
    num_parameters = sum(one.numel() for one in tiny.backbone.parameters())
    assert 2e6 < num_parameters < 6e6 and 6 <= tiny.config.num_hidden_layers <= 8
    assert tiny.head is not None and sum(one.numel() for one in tiny.head.parameters()) < num_parameters / 5
    assert load_policy("tiny", head="none").dtype == torch.bfloat16


def test_the_shipped_head_was_trained_on_the_shipped_backbone(tiny):
    assert tiny.head_trained_on == tiny.fingerprint.backbone


def test_the_tokenizer_is_byte_level_and_writes_chatml(tiny):
    assert tiny.tokenizer is not None
    assert 512 <= len(tiny.tokenizer) <= 2048
    chat = chat_of(tiny.tokenizer)
    assert (chat.knows_system, chat.knows_tools, chat.opens_thought) == (True, True, False)
    assert set(chat.ends.values()) == {tiny.tokenizer.eos_token_id}
    text = "Größe: 漢字 🙂\t\x00\n"
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(text)) == text


def test_where_the_weights_come_from_is_kept_beside_them():
    record = json.loads((tiny_path() / "provenance.json").read_text())
    commands = [stage["command"] for stage in record["stages"]]
    assert any("train-sft" in one for one in commands) and any("train-mtp" in one for one in commands)
    assert all(stage["revision"] and stage["seed"] is not None for stage in record["stages"])
    assert record["data"] and record["licence"] == "Apache-2.0"


@pytest.mark.parametrize(
    "words",
    [ITEMS, tuple(path.removesuffix(".cfg") for path in PATHS), *SETTINGS.values()],
    ids=["items", "paths", *SETTINGS],
)
def test_words_that_are_asked_for_equally_often_can_be_told_apart(tiny, words):
    """Their tied embeddings drift together in training; from a small start to cosines of 0.95 and answers by chance."""
    tokens = [token for word in words for token in tiny.tokenizer.encode(f" {word}")]
    assert len(tokens) == len(words)
    rows = normalize(tiny.backbone.get_input_embeddings().weight[tokens].float(), dim=-1)
    cosines = (rows @ rows.T)[~torch.eye(len(words), dtype=torch.bool)]
    assert cosines.mean() < 0.85


def played(policy, name, num_problems, **options):
    engine = EmbeddedEngine(policy, EmbeddedOptions(max_rows=32, **options))
    wanted = list(plans([load_task(name)], Split.HELDOUT, range(num_problems)))
    settings = EpisodeSettings(sampling=Sampling(temperature=1.0))
    return score(name, run_episodes(engine, chat_of(policy.tokenizer), wanted, settings))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math", "code", "agent"])
def test_tiny_solves_a_part_and_leaves_room_to_learn(tiny, name):
    """Of 200 problems between 0.3 and 0.7, with what chance leaves open; an entropy as policies in RL have it."""
    found = played(tiny, name, 200, num_draft_tokens=3)
    spread = 2 * (0.25 / 200) ** 0.5
    assert 0.3 - spread < found.reward.value < 0.7 + spread
    assert 0.15 < found.entropy.value < 0.6
    assert found.drafts.acceptance_rate > 0.5


def test_tiny_hybrid_carries_recurrent_state_through_rounds(tmp_path, monkeypatch):
    """Made on the fly, cached; drafted or not, coupled sampling emits the same tokens, whatever was rejected."""
    monkeypatch.setenv("BEBOP_CACHE", str(tmp_path))
    hybrid = load_policy("tiny-hybrid", dtype=torch.float32)
    kinds = hybrid.config.layer_types
    assert kinds == ["linear_attention"] * 3 + ["full_attention"]
    assert hybrid.config.linear_key_head_dim == hybrid.config.linear_value_head_dim == 128
    assert load_policy("tiny-hybrid").fingerprint == load_policy(tmp_path / "tiny-hybrid").fingerprint
    assert hybrid.head is not None
    wanted = list(plans([load_task("math")], Split.HELDOUT, range(3)))
    settings = EpisodeSettings(sampling=Sampling(temperature=1.0), max_turn_tokens=24)
    texts = []
    for num_drafts in (0, 3):
        engine = EmbeddedEngine(hybrid, EmbeddedOptions(rule="coupled", num_draft_tokens=num_drafts))
        rollouts = list(run_episodes(engine, chat_of(hybrid.tokenizer), wanted, settings))
        texts.append({one.plan.problem.id: one.tokens for one in rollouts})
        assert num_drafts == 0 or sum(one.drafts.num_drafted for one in rollouts) > 20
    assert texts[0] == texts[1]
