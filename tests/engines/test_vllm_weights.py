"""Updates carry checkpoint names, whole layers or nothing; fingerprints come back through vLLM's merged layout."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from vllm_policies import KINDS, served_policy

from bebop.engines.vllm.layout import apart, readable
from bebop.engines.vllm.weights import WeightNames
from bebop.errors import UserError
from bebop.models.fingerprint import tensor_digests
from bebop.models.policy import Policy, save_policy
from bebop.models.spec import read_spec

# Where vLLM's draft model keeps what the checkpoint keeps elsewhere.
DRAFT_NAMES: Mapping[str, Callable[[str], str]] = {
    "full": lambda name: name.replace("mtp.", "model."),
    "hybrid": lambda name: name.replace("mtp.", "model."),
    "llama": lambda name: "model." + name,
    "mimo": lambda name: _mimo(name.removeprefix("model.mtp_layers.0.")),
}


def _mimo(name: str) -> str:
    inside = name.startswith(("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"))
    return "model.mtp_layers.2." + ("mtp_block." if inside else "") + name


def opened(kind: str, path: Path) -> tuple[Policy, WeightNames]:
    policy = served_policy(kind)
    save_policy(policy, path)
    return policy, WeightNames(read_spec(path))


def backbone(policy: Policy) -> dict[str, Tensor]:
    return dict(policy.backbone.state_dict())


def head(policy: Policy) -> dict[str, Tensor]:
    assert policy.head is not None
    return {"head." + name: tensor for name, tensor in policy.head.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_holds_every_tensor_under_its_checkpoint_name(kind: str, tmp_path: Path) -> None:
    policy, names = opened(kind, tmp_path / "policy")
    update = names.update(backbone(policy) | head(policy))
    spec = read_spec(tmp_path / "policy")
    assert update.target.keys() == spec.backbone_tensors.keys()
    assert spec.head_checkpoint is not None
    assert update.draft.keys() == set(spec.head_checkpoint.tensors) - (set() if kind == "llama" else set(update.target))
    for name, tensor in (update.target | update.draft).items():
        stored = spec.head_checkpoint.tensors if name in update.draft else spec.backbone_tensors
        assert torch.equal(stored[name].read(), tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_backbone_alone_and_head_alone_are_updates(kind: str, tmp_path: Path) -> None:
    policy, names = opened(kind, tmp_path / "policy")
    assert not names.update(backbone(policy)).draft
    assert not names.update(head(policy)).target


def test_what_vllm_would_fill_with_garbage_is_refused(tmp_path: Path) -> None:
    policy, names = opened("full", tmp_path / "policy")
    some = backbone(policy)
    some.pop("model.layers.0.self_attn.k_proj.weight")
    with pytest.raises(UserError, match="k_proj"):
        names.update(some)
    with pytest.raises(UserError, match="no tensor"):
        names.update(backbone(policy) | {"model.other": torch.zeros(1)})
    with pytest.raises(UserError, match="same model"):
        names.update(backbone(policy) | {"model.norm.weight": torch.zeros(5)})


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints_come_back_through_vllms_names(kind: str, tmp_path: Path) -> None:
    policy, names = opened(kind, tmp_path / "policy")
    assert names.fingerprint(digests_in_vllm(kind, policy, names)) == policy.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_tensor_of_the_head_changes_the_heads_fingerprint_alone(kind: str, tmp_path: Path) -> None:
    policy, names = opened(kind, tmp_path / "policy")
    before = names.fingerprint(digests_in_vllm(kind, policy, names))
    assert policy.head is not None
    with torch.no_grad():
        next(iter(policy.head.parameters())).view(-1)[0] += 1
    after = names.fingerprint(digests_in_vllm(kind, policy, names))
    assert after.differing_groups(before) == ("head",)


def digests_in_vllm(kind: str, policy: Policy, names: WeightNames) -> dict[str, dict[str, str]]:
    """What the worker would answer: the draft model has the target's embedding and lm_head."""
    update = names.update(backbone(policy) | head(policy))
    shared = {name: update.target[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    draft = {DRAFT_NAMES[kind](name): tensor for name, tensor in update.draft.items()} | shared
    return {"target": tensor_digests(update.target), "draft": tensor_digests(draft)}


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_drafts_from_a_stale_copy_are_refused(name: str, tmp_path: Path) -> None:
    policy, names = opened("full", tmp_path / "policy")
    digests = digests_in_vllm("full", policy, names)
    digests["draft"][name] = "stale"
    with pytest.raises(UserError, match=name):
        names.fingerprint(digests)


def test_merged_projections_come_apart_as_the_checkpoint_has_them() -> None:
    merged = torch.arange(8 * 3.0).view(8, 3)
    parts = dict(apart("model.layers.0.self_attn.qkv_proj.weight", merged, (4, 2, 2)))
    assert [name.split(".")[-2] for name in parts] == ["q_proj", "k_proj", "v_proj"]
    assert torch.equal(torch.cat(list(parts.values())), merged)
    gated = dict(apart("model.layers.0.linear_attn.in_proj_qkvz.weight", merged, (2, 2, 2, 2)))
    assert torch.equal(gated["model.layers.0.linear_attn.in_proj_qkv.weight"], merged[:6])
    assert torch.equal(gated["model.layers.0.linear_attn.in_proj_z.weight"], merged[6:])
    assert dict(apart("model.norm.weight", merged, ())) == {"model.norm.weight": merged}


class PackedLinear(nn.Module):
    """A layer as vLLM leaves it on a CPU: the weight only inside a closure."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.input_size = weight.shape[1]
        self.weight = nn.Parameter(torch.empty(0, dtype=weight.dtype))
        self.cpu_linear = lambda x, _, bias: nn.functional.linear(x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_is_read_back_exactly(dtype: torch.dtype) -> None:
    weight = (torch.randn(5, 1500, generator=torch.Generator().manual_seed(0)) * 1e3).to(dtype)
    layer = PackedLinear(weight)
    assert torch.equal(readable(layer, "weight", layer.weight), weight)


def test_padding_of_the_vocabulary_is_left_out() -> None:
    embedding = nn.Embedding(64, 2)
    embedding.org_vocab_size = 61  # type: ignore[assignment]
    assert readable(embedding, "weight", embedding.weight).shape == (61, 2)
