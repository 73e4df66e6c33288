"""The forward of the heads against a second implementation, and the ways in which wirings go silently wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference_heads import Sizes, Weights, below, eagle_head, mimo_head, qwen_head, rms
from tiny_models import HIDDEN, VOCAB, load_tensors, make_policy
from torch import Tensor
from transformers import DynamicCache

from bebop.errors import UserError
from bebop.models.contracts import GLM4_MOE, QWEN3_5, HeadOptions
from bebop.models.policy import MTPHead, Policy, new_policy, save_policy

LENGTH = 7
QWEN_SIZES = Sizes(num_heads=4, head_dim=16, rotary_dim=8, rope_theta=1e4, eps=1e-6, num_experts_per_token=2)


def inputs(*, first_position: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden and embeddings [2, LENGTH, HIDDEN] and the positions of the hidden."""
    torch.manual_seed(1)
    positions = torch.arange(first_position, first_position + LENGTH).expand(2, LENGTH)
    return torch.randn(2, LENGTH, HIDDEN), torch.randn(2, LENGTH, HIDDEN), positions


def head_of(policy: Policy) -> MTPHead:
    assert policy.head is not None
    return policy.head


def stored_head(policy: Policy, directory: Path, prefix: str, *, subdirectory: str = "") -> Weights:
    """The head's tensors under the names in which engines find them."""
    save_policy(policy, directory)
    return below(load_tensors(directory / subdirectory), prefix)


@torch.no_grad()
@pytest.mark.parametrize(("name", "theta"), [("qwen3_5", 1e4), ("qwen3_5_moe", 1e4)])
def test_qwen_head_equals_the_formulas(name: str, theta: float, tmp_path: Path) -> None:
    policy = make_policy(name)
    weights = stored_head(policy, tmp_path / "p", "mtp.")
    state = head_of(policy)(*inputs())
    expected = qwen_head(weights, *inputs(), QWEN_SIZES)
    torch.testing.assert_close(state.output_BTH, expected, atol=1e-5, rtol=1e-5)
    assert state.recycle_BTH is state.output_BTH
    wrong_split = qwen_head(weights, *inputs(), QWEN_SIZES, split_per_head=False)
    assert (wrong_split - expected).abs().max() > 1e-2


@torch.no_grad()
def test_mimo_head_equals_the_formulas(tmp_path: Path) -> None:
    policy = make_policy("mimo")
    weights = stored_head(policy, tmp_path / "p", "model.mtp_layers.0.")
    assert {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"} < set(weights)
    sizes = Sizes(num_heads=4, head_dim=8, rotary_dim=8, rope_theta=1e4, eps=1e-6)
    expected = mimo_head(weights, *inputs(), sizes)
    torch.testing.assert_close(head_of(policy)(*inputs()).output_BTH, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "head_dim"), [("llama", 8), ("qwen3", 16)])
def test_eagle_head_equals_the_formulas(name: str, head_dim: int, tmp_path: Path) -> None:
    policy = make_policy(name)
    weights = stored_head(policy, tmp_path / "p", "", subdirectory="eagle")
    assert "layers.0.input_layernorm.weight" not in weights
    assert {key for key in weights if not key.startswith("layers.0.")} == {"fc.weight"}
    sizes = Sizes(num_heads=4, head_dim=head_dim, rotary_dim=head_dim, rope_theta=1e4, eps=1e-6)
    state = head_of(policy)(*inputs())
    torch.testing.assert_close(state.output_BTH, eagle_head(weights, *inputs(), sizes), atol=1e-5, rtol=1e-5)
    assert state.recycle_BTH is state.output_BTH


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "qwen3_next"])
def test_zero_weights_leave_unit_rms_in_every_norm_of_a_qwen_head(name: str) -> None:
    head = head_of(make_policy(name))
    norms = {key: module for key, module in head.named_modules() if key.endswith("norm")}
    assert len(norms) == 7  # two before the fuse, two in the layer, query, key, output
    for key, norm in norms.items():
        weight = norm.get_parameter("weight")
        weight.zero_()
        x = 3 * torch.randn(5, weight.numel())
        torch.testing.assert_close(norm(x).pow(2).mean(-1), torch.ones(5), atol=1e-4, rtol=0, msg=key)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "qwen3_next"])
def test_norms_of_a_half_precision_qwen_head_compute_in_float32(name: str) -> None:
    """The formula in float32, rounded once at its end; computed in bfloat16 throughout it would differ."""
    head = head_of(make_policy(name)).bfloat16()
    for key, norm in head.named_modules():
        if key.endswith("norm"):
            weight, x = norm.get_parameter("weight"), 3 * torch.randn(64, norm.get_parameter("weight").numel())
            x = x.bfloat16()
            expected = rms(x.float(), weight.float(), QWEN_SIZES.eps, centred=True)
            assert torch.equal(norm(x), expected.bfloat16()), key
            assert not torch.equal(norm(x), rms(x, weight, QWEN_SIZES.eps, centred=True)), key


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "left_is"),
    [("qwen3_5", "embedding"), ("deepseek_v3", "embedding"), ("llama", "embedding"), ("mimo", "hidden")],
)
def test_the_left_half_of_the_fuse_acts_on(name: str, left_is: str) -> None:
    head = head_of(make_policy(name))
    head.fuse.weight[:, :HIDDEN] = 0
    hidden, embeds, positions = inputs(first_position=1)
    output = head(hidden, embeds, positions).output_BTH
    other_embeds = head(hidden, embeds + 1, positions).output_BTH
    other_hidden = head(hidden + 1, embeds, positions).output_BTH
    unaffected, affected = (other_embeds, other_hidden) if left_is == "embedding" else (other_hidden, other_embeds)
    assert torch.equal(output, unaffected)
    assert not torch.allclose(output, affected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_5", "deepseek_v3", "glm4_moe", "llama"])
def test_only_relative_positions_matter(name: str) -> None:
    head = head_of(make_policy(name))
    hidden, embeds, positions = inputs()
    output = head(hidden, embeds, positions).output_BTH
    torch.testing.assert_close(head(hidden, embeds, positions + 9).output_BTH, output, atol=1e-4, rtol=1e-4)
    in_place, moved = (last_step(head, hidden, embeds, positions, shift=shift) for shift in (0, 3))
    torch.testing.assert_close(in_place, output[:, -1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(moved, in_place, atol=1e-3)


def last_step(head: MTPHead, hidden: Tensor, embeds: Tensor, positions: Tensor, *, shift: int) -> Tensor:
    """The last position alone, on cached keys that stay where they are while its query moves by `shift`."""
    cache = DynamicCache()
    head(hidden[:, :-1], embeds[:, :-1], positions[:, :-1], cache=cache)
    return head(hidden[:, -1:], embeds[:, -1:], positions[:, -1:] + shift, cache=cache).output_BTH


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_several_rows_on_a_cache_stay_causal(implementation: str) -> None:
    head = head_of(make_policy("qwen3_5"))
    whole = head(*inputs()).output_BTH
    head.config._attn_implementation = implementation
    cache = DynamicCache()
    parts = [head(*(x[:, cut] for x in inputs()), cache=cache).output_BTH for cut in (slice(0, 3), slice(3, LENGTH))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("qwen3_5", HeadOptions(), "post"),
        ("llama", HeadOptions(), "post"),
        ("deepseek_v3", HeadOptions(), "post"),
        ("mimo", HeadOptions(), "pre"),
        ("mimo", HeadOptions(input_norm="post"), "post"),
    ],
)
def test_depth_one_takes_the_hidden_from_the_right_side_of_the_final_norm(
    name: str, options: HeadOptions, side: str
) -> None:
    policy = make_policy(name, options=options)
    seen: dict[str, Tensor] = {}
    norm = policy.backbone.get_submodule("model.norm")
    norm.register_forward_hook(lambda _, given, out: seen.update(pre=given[0], post=out))
    tokens = torch.randint(VOCAB, (2, LENGTH))
    state = policy.run_backbone(tokens)
    assert torch.equal(state.draft_input_BTH, seen[side])
    assert torch.equal(policy.logits(state.hidden_BTH), policy.backbone(tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["glm4_moe", "deepseek_v3"])
def test_the_recycled_vector_is_an_option_where_engines_differ(name: str) -> None:
    post, pre = (head_of(make_policy(name, options=HeadOptions(recycle=side))) for side in ("post", "pre"))
    after, before = post(*inputs()), pre(*inputs())
    assert torch.equal(after.output_BTH, before.output_BTH)
    assert torch.equal(after.recycle_BTH, after.output_BTH)
    assert torch.equal(pre.output_norm(before.recycle_BTH), before.output_BTH)
    _, embeds, positions = inputs()
    second_post, second_pre = (
        h(s.recycle_BTH, embeds, positions).output_BTH for h, s in ((post, after), (pre, before))
    )
    assert not torch.allclose(second_post, second_pre, atol=1e-3)


def test_an_option_on_a_point_that_is_settled_is_refused() -> None:
    with pytest.raises(UserError, match=r"qwen3_5 head fixes recycle.*none"):
        QWEN3_5.with_options(HeadOptions(recycle="pre"))
    with pytest.raises(UserError, match="can be 'post' or 'pre'"):
        HeadOptions(recycle="both")  # type: ignore[arg-type]
    assert GLM4_MOE.with_options(HeadOptions(recycle="pre")).recycle == "pre"


@torch.no_grad()
def test_the_embedding_counts_for_nothing_at_position_zero_of_mimo_alone() -> None:
    hidden, embeds, positions = inputs()
    for name, ignored in (("mimo", True), ("qwen3_5", False), ("deepseek_v3", False)):
        head = head_of(make_policy(name))
        changed = embeds.clone()
        changed[:, 0] += 1
        equal = torch.equal(head(hidden, embeds, positions).output_BTH, head(hidden, changed, positions).output_BTH)
        assert equal is ignored, name


def test_a_fresh_head_starts_from_the_backbones_last_full_attention_layer() -> None:
    policy = new_policy(make_policy("qwen3_5").backbone)
    layer = policy.backbone.get_submodule("model.layers.1").state_dict()
    assert all(torch.equal(layer[name], tensor) for name, tensor in head_of(policy).layer.state_dict().items())
    assert torch.equal(head_of(policy).hidden_norm.weight, torch.zeros(HIDDEN))
    assert torch.equal(head_of(policy).output_norm.weight, policy.backbone.get_parameter("model.norm.weight"))
    hidden, embeds, positions = inputs()
    assert head_of(policy)(hidden, embeds, positions).output_BTH.isfinite().all()


@torch.no_grad()
def test_a_fresh_eagle_head_starts_at_the_scale_the_lm_head_expects() -> None:
    """No output norm: a backbone layer that writes a hundred times too much must not be where the head starts."""
    backbone = make_policy("llama").backbone
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        backbone.get_submodule(f"model.layers.1.{name}").get_parameter("weight").mul_(100)
    hidden, embeds, positions = inputs()
    output = head_of(new_policy(backbone))(hidden, embeds, positions).output_BTH
    assert (output - (hidden + embeds)).pow(2).mean() < 0.1 * (hidden + embeds).pow(2).mean()
