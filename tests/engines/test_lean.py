"""Lean layers compute what transformers' modules compute, and follow every change of weights."""

import pytest
import torch
from small_policies import KINDS, random_prompts, run, small_policy
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from bebop.engines.base import Request
from bebop.engines.embedded import EmbeddedEngine
from bebop.engines.embedded.attention import ragged
from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.drafting import Drafter, Waiting
from bebop.engines.embedded.matrices import packs_bfloat16
from bebop.engines.embedded.prompts import Prefiller
from bebop.models.policy import Policy, new_policy

PROMPTS = [list(prompt) for prompt in random_prompts((7, 3, 5))]
NUM_NEW = 4


def qwen3() -> Policy:
    torch.manual_seed(2)
    backbone = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=16,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            attention_bias=True,
        )
    )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return new_policy(backbone.eval())


def with_wider_norms(kind: str) -> Policy:
    policy = qwen3() if kind == "qwen3" else small_policy(kind)
    with torch.no_grad():
        for module in (policy.backbone, policy.head):
            for name, parameter in module.named_parameters():  # type: ignore[union-attr]
                if name.endswith("norm.weight"):
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return policy


@torch.inference_mode()
def outputs(policy: Policy, lean: bool) -> tuple[Tensor, list[Tensor]]:
    """Hidden states of a ragged window, and what the head puts into the lm_head while drafting after prefill."""
    assert policy.head is not None
    backbone, drafter = Backbone(policy, 4, lean=lean), Drafter(policy, policy.head, 4, lean=lean)
    with ragged(policy.config, policy.head.config):
        backbone.reserve(64)
        drafter.cache.reserve(64)
        prefiller = Prefiller(backbone, drafter, max_tokens=1000)
        prefiller.fill([0, 1, 2], prefiller.prefill(PROMPTS))
        last_B = torch.tensor([len(prompt) - 1 for prompt in PROMPTS])
        waiting = Waiting(
            tokens_BW=torch.tensor([[prompt[-1]] for prompt in PROMPTS]),
            first_B=last_B - 1,
            counts_B=torch.ones_like(last_B),
            width=1,
            longest=7,
        )
        drafted: list[Tensor] = []

        def choose(output_BH: Tensor, depth: int) -> Tensor:
            drafted.append(output_BH)
            return torch.tensor([3, 1, 2]) + depth

        drafter.draft(waiting, 3, choose)
        tokens_BT = torch.tensor([[prompt[-1], 5, 9, 2] for prompt in PROMPTS])
        hidden = backbone.window(tokens_BT, last_B[:, None] + torch.arange(NUM_NEW), 7 + NUM_NEW)
    return hidden.output_BTH, drafted


@pytest.mark.parametrize("kind", [*KINDS, "qwen3"])
def test_lean_layers_agree_with_the_modules(kind: str) -> None:
    policy = with_wider_norms(kind)
    wanted, wanted_drafts = outputs(policy, lean=False)
    found, drafts = outputs(policy, lean=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drafts, wanted_drafts, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, wanted), "the lean path did not run"


@pytest.mark.skipif(not packs_bfloat16(torch.device("cpu")), reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("kind", [*KINDS, "qwen3"])
def test_in_bfloat16_they_are_as_near_to_float64_as_the_modules(kind: str) -> None:
    policy = as_format(with_wider_norms(kind), torch.bfloat16)
    modules, lean = (outputs(policy, lean=lean) for lean in (False, True))
    assert not torch.equal(lean[0], modules[0]), "the lean path did not run"
    exact = outputs(as_format(policy, torch.float64), lean=False)
    pairs = [(lean[0], modules[0], exact[0]), *zip(lean[1], modules[1], exact[1], strict=True)]
    errors = torch.tensor([[_error(one, wanted), _error(module, wanted)] for one, module, wanted in pairs])
    assert (errors[:, 0] < 1.2 * errors[:, 1]).all()
    assert errors[:, 0].mean() < 1.02 * errors[:, 1].mean()


def test_formats_that_are_not_packed_run_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = as_format(small_policy("full"), torch.float64)
    assert torch.equal(outputs(policy, lean=True)[0], outputs(policy, lean=False)[0])
    monkeypatch.setattr("bebop.engines.embedded.lean.packs_bfloat16", lambda device: False)
    policy = as_format(policy, torch.bfloat16)
    assert torch.equal(outputs(policy, lean=True)[0], outputs(policy, lean=False)[0])


def as_format(policy: Policy, dtype: torch.dtype) -> Policy:
    assert policy.head is not None
    policy.backbone.to(dtype)
    policy.head.to(dtype)
    return policy


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def test_weights_changed_in_place_are_seen_by_the_next_call() -> None:
    policy = small_policy("full")
    engine = EmbeddedEngine(policy)
    request = Request(id="a", prompt_tokens=tuple(PROMPTS[0]), max_tokens=8)
    before = engine.generate([request])[0]
    with torch.no_grad():
        for layer in policy.backbone.get_decoder().layers:
            layer.input_layernorm.weight.add_(0.5)
    after = engine.generate([request])[0]
    assert after.raw_logprobs == run(policy, [request])[0].raw_logprobs != before.raw_logprobs
