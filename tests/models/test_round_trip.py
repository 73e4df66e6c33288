"""Load, save, and nothing has changed: every contract, dense and MoE, one file and several, tied and untied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import CASES, contract_of, edit_json, load_tensors, make_policy, read_raw, rewrite
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from bebop.models.policy import load_policy, save_policy

CENSUS_DENSE = {
    "fc.weight",
    "pre_fc_norm_embedding.weight",
    "pre_fc_norm_hidden.weight",
    "norm.weight",
    "layers.0.input_layernorm.weight",
    "layers.0.post_attention_layernorm.weight",
    "layers.0.self_attn.q_proj.weight",
    "layers.0.self_attn.k_proj.weight",
    "layers.0.self_attn.v_proj.weight",
    "layers.0.self_attn.o_proj.weight",
    "layers.0.self_attn.q_norm.weight",
    "layers.0.self_attn.k_norm.weight",
    "layers.0.mlp.gate_proj.weight",
    "layers.0.mlp.up_proj.weight",
    "layers.0.mlp.down_proj.weight",
}
CENSUS_FUSED = {name for name in CENSUS_DENSE if ".mlp." not in name} | {
    "layers.0.mlp.gate.weight",
    "layers.0.mlp.experts.gate_up_proj",
    "layers.0.mlp.experts.down_proj",
    "layers.0.mlp.shared_expert.gate_proj.weight",
    "layers.0.mlp.shared_expert.up_proj.weight",
    "layers.0.mlp.shared_expert.down_proj.weight",
    "layers.0.mlp.shared_expert_gate.weight",
}


def stored(name: str, tmp_path: Path, *, tied: bool, num_shards: int) -> Path:
    """A checkpoint of bfloat16 weights (routing biases float32), written by transformers, safetensors and us."""
    policy = make_policy(name, tied=tied)
    save_policy(policy, tmp_path / "made")
    tensors = load_tensors(tmp_path / "made")
    narrow = {k: t if k.endswith("e_score_correction_bias") else t.bfloat16() for k, t in tensors.items()}
    rewrite(tmp_path / "made", narrow, num_shards=num_shards)
    return tmp_path / "made"


@pytest.mark.parametrize(("tied", "num_shards"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("name", CASES)
def test_untouched_tensors_keep_their_bytes(name: str, tied: bool, num_shards: int, tmp_path: Path) -> None:
    made = stored(name, tmp_path, tied=tied, num_shards=num_shards)
    policy = load_policy(made, dtype=torch.float32)
    assert policy.head is not None
    save_policy(policy, tmp_path / "saved")
    before, after = read_raw(made), read_raw(tmp_path / "saved")
    assert before == after
    assert any(k.startswith(contract_of(name).tensor_prefix(2) or "eagle/") for k in after)
    assert ("lm_head.weight" in after) is not tied
    shards = sorted(file.name for file in made.glob("model*"))
    assert shards == sorted(file.name for file in (tmp_path / "saved").glob("model*"))


@pytest.mark.parametrize(("name", "census"), [("qwen3_5", CENSUS_DENSE), ("qwen3_5_moe", CENSUS_FUSED)])
def test_the_census_of_a_qwen_head(name: str, census: set[str], tmp_path: Path) -> None:
    save_policy(make_policy(name), tmp_path / "saved")
    head = {k.removeprefix("mtp.") for k in read_raw(tmp_path / "saved") if k.startswith("mtp.")}
    assert head == census
    assert len(head) == {"qwen3_5": 15, "qwen3_5_moe": 19}[name]


@pytest.mark.parametrize("name", CASES)
def test_stock_transformers_finds_every_key_of_what_we_save(name: str, tmp_path: Path) -> None:
    save_policy(make_policy(name), tmp_path / "saved")
    loader = AutoModelForCausalLM
    config = None
    if name == "mimo":  # no class of its own in transformers; its backbone is Qwen2's
        loader, config = Qwen2ForCausalLM, Qwen2Config.from_pretrained(tmp_path / "saved")
    _, info = loader.from_pretrained(tmp_path / "saved", config=config, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("name", CASES)
def test_a_head_survives_a_change_of_the_backbone(name: str, tmp_path: Path) -> None:
    save_policy(make_policy(name), tmp_path / "first")
    policy = load_policy(tmp_path / "first")
    touched = policy.backbone.get_parameter("model.layers.1.post_attention_layernorm.weight")
    embedding = policy.backbone.get_parameter("model.embed_tokens.weight")
    with torch.no_grad():
        touched.add_(0.5)
        embedding.add_(0.5)
    save_policy(policy, tmp_path / "second")
    before, after = read_raw(tmp_path / "first"), read_raw(tmp_path / "second")
    changed = {key for key in before if before[key] != after[key]}
    copies = {key for key in before if key.endswith("embed_tokens.weight")}
    assert changed == {"model.layers.1.post_attention_layernorm.weight"} | copies
    again = load_policy(tmp_path / "second")
    assert again.fingerprint == policy.fingerprint


def test_a_head_that_was_not_loaded_is_carried_along(tmp_path: Path) -> None:
    for name in ("qwen3_5", "llama"):
        save_policy(make_policy(name), tmp_path / name)
        save_policy(load_policy(tmp_path / name, head="none"), tmp_path / f"{name}-saved")
        assert read_raw(tmp_path / name) == read_raw(tmp_path / f"{name}-saved")


@pytest.mark.parametrize("name", ["qwen3_5_moe", "qwen3_next"])
@pytest.mark.parametrize("split", [False, True])
def test_both_expert_layouts_are_read_and_written_back(name: str, split: bool, tmp_path: Path) -> None:
    policy = make_policy(name)
    save_policy(policy, tmp_path / "made")
    tensors = load_tensors(tmp_path / "made")
    rewrite(tmp_path / "made", split_experts(tensors) if split else fuse_experts(tensors))
    read = load_policy(tmp_path / "made")
    assert read.fingerprint == policy.fingerprint
    save_policy(read, tmp_path / "saved")
    assert read_raw(tmp_path / "made") == read_raw(tmp_path / "saved")


def split_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out[name] = tensor
            continue
        block, _, kind = name.rpartition(".")
        for expert, one in enumerate(tensor):
            halves = one.chunk(2) if kind == "gate_up_proj" else (one,)
            parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            for part, half in zip(parts, halves, strict=True):
                out[f"{block}.{expert}.{part}.weight"] = half.clone()
    return out


def fuse_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {name: tensor for name, tensor in tensors.items() if ".experts." not in name or name.endswith("_proj")}
    blocks = {name.split(".experts.")[0] for name in tensors if ".experts.0.gate_proj.weight" in name}
    for block in blocks:
        rows = [[tensors[f"{block}.experts.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")] for e in range(4)]
        out[f"{block}.experts.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in rows])
        out[f"{block}.experts.down_proj"] = torch.stack([down for _, _, down in rows])
    return out


def test_precision_that_was_never_touched_is_not_lost(tmp_path: Path) -> None:
    """Stored in float32, computed with in bfloat16: only what was trained is rounded."""
    save_policy(make_policy("qwen3_5"), tmp_path / "made")
    policy = load_policy(tmp_path / "made", dtype=torch.bfloat16)
    assert policy.head is not None
    with torch.no_grad():
        policy.head.fuse.weight.mul_(2)
    save_policy(policy, tmp_path / "saved")
    before, after = read_raw(tmp_path / "made"), read_raw(tmp_path / "saved")
    assert {key for key in before if before[key] != after[key]} == {"mtp.fc.weight"}
    assert after["mtp.fc.weight"][0] == torch.float32


def test_a_policy_can_be_saved_over_its_own_source(tmp_path: Path) -> None:
    save_policy(make_policy("qwen3_5"), tmp_path / "made")
    policy = load_policy(tmp_path / "made")
    for _ in range(2):
        with torch.no_grad():
            policy.backbone.get_parameter("model.norm.weight").add_(1.0)
        save_policy(policy, tmp_path / "made")
        assert load_policy(tmp_path / "made").fingerprint == policy.fingerprint
    assert [item.name for item in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(("name", "num_shards"), [("qwen3_5", 1), ("qwen3_5", 2), ("glm4_moe", 2), ("llama", 1)])
def test_a_fresh_head_joins_a_checkpoint_that_had_none(name: str, num_shards: int, tmp_path: Path) -> None:
    headless = replace(make_policy(name), head=None)
    save_policy(headless, tmp_path / "made")
    rewrite(tmp_path / "made", load_tensors(tmp_path / "made"), num_shards=num_shards)
    if name != "glm4_moe":  # transformers' config class announces a head of its own accord
        assert load_policy(tmp_path / "made").head is None
    policy = load_policy(tmp_path / "made", head="fresh")
    save_policy(policy, tmp_path / "saved")
    before, after = read_raw(tmp_path / "made"), read_raw(tmp_path / "saved")
    assert {key: after[key] for key in before} == before
    assert load_policy(tmp_path / "saved").fingerprint == policy.fingerprint


def test_a_multimodal_wrapper_keeps_its_names_and_its_other_tower(tmp_path: Path) -> None:
    policy = make_policy("qwen3_5")
    save_policy(policy, tmp_path / "made")
    tensors = load_tensors(tmp_path / "made")
    wrapped = {key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key: t
               for key, t in tensors.items()}  # fmt: skip
    wrapped["model.visual.patch_embed.weight"] = torch.randn(3, 4)
    rewrite(tmp_path / "made", wrapped, num_shards=2)
    text = policy.config.to_dict() | {"mtp_num_hidden_layers": 1}
    config = tmp_path / "made" / "config.json"
    config.write_text("{}")
    edit_json(config, model_type="qwen3_5", text_config=text, architectures=["Qwen3_5ForConditionalGeneration"])
    read = load_policy(tmp_path / "made")
    assert read.fingerprint == policy.fingerprint
    save_policy(read, tmp_path / "saved")
    assert read_raw(tmp_path / "made") == read_raw(tmp_path / "saved")
    assert config.read_bytes() == (tmp_path / "saved" / "config.json").read_bytes()
