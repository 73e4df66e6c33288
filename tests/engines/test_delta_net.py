"""States of Gated DeltaNet layers after a partly accepted window equal those of a fresh prefill."""

import pytest
import torch
from small_policies import random_prompts, small_policy

from bebop.engines.embedded.attention import ragged
from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.prompts import Prefiller
from bebop.models.policy import Policy

NUM_DRAFTS = 5
PROMPTS = random_prompts((9, 2, 5, 1), seed=3)
BLOCKS = random_prompts((NUM_DRAFTS,) * 4, seed=4)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small_policy("hybrid")


def prefilled(policy: Policy, sequences: list[list[int]]) -> Backbone:
    """The states after each sequence but for its last token."""
    backbone = Backbone(policy, len(sequences))
    backbone.reserve(64)
    prefiller = Prefiller(backbone, None, max_tokens=8)
    prefiller.fill(list(range(len(sequences))), prefiller.prefill(sequences))
    return backbone


def after_window(policy: Policy, num_kept: list[int]) -> tuple[Backbone, torch.Tensor]:
    backbone = prefilled(policy, [list(prompt) for prompt in PROMPTS])
    tokens_BJ = torch.tensor([[prompt[-1], *block] for prompt, block in zip(PROMPTS, BLOCKS, strict=True)])
    positions_BJ = torch.tensor([len(p) - 1 for p in PROMPTS])[:, None] + torch.arange(NUM_DRAFTS + 1)
    hidden = backbone.window(tokens_BJ, positions_BJ, int(positions_BJ.max()) + 1)
    backbone.commit(num_kept)
    return backbone, hidden.output_BTH


@torch.inference_mode()
@pytest.mark.parametrize("num_accepted", range(NUM_DRAFTS + 1))
def test_states_after_a_window_equal_a_fresh_prefill(policy: Policy, num_accepted: int) -> None:
    rotated = [(num_accepted + row) % (NUM_DRAFTS + 1) for row in range(len(PROMPTS))]
    with ragged(policy.config):
        backbone, _ = after_window(policy, [count + 1 for count in rotated])
        kept = [[*p, *block[:count], 0] for p, block, count in zip(PROMPTS, BLOCKS, rotated, strict=True)]
        fresh = prefilled(policy, kept)
        assert len(backbone.delta.layers) == 3
        for layer in backbone.delta.layers:
            for slot in range(len(PROMPTS)):
                for state, wanted in zip(
                    backbone.delta.states(layer, slot), fresh.delta.states(layer, slot), strict=True
                ):
                    torch.testing.assert_close(state, wanted, rtol=1e-5, atol=1e-5)
                    assert wanted.abs().max() > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("wrong", [-1, 1])
def test_states_after_another_count_differ(policy: Policy, wrong: int) -> None:
    with ragged(policy.config):
        backbone, _ = after_window(policy, [3 + wrong] * 4)
        fresh = prefilled(policy, [[*p, *block[:2], 0] for p, block in zip(PROMPTS, BLOCKS, strict=True)])
        gaps = [
            (backbone.delta.states(layer, slot)[0] - fresh.delta.states(layer, slot)[0]).abs().max()
            for layer in backbone.delta.layers
            for slot in range(4)
        ]
        assert min(gaps) > 1e-3


@torch.inference_mode()
def test_outputs_of_a_window_equal_the_plain_forward(policy: Policy) -> None:
    with ragged(policy.config):
        _, output_BJH = after_window(policy, [1] * 4)
    for row, (prompt, block) in enumerate(zip(PROMPTS, BLOCKS, strict=True)):
        wanted = policy.run_backbone(torch.tensor([[*prompt, *block]])).hidden_BTH[0, len(prompt) - 1 :]
        torch.testing.assert_close(output_BJH[row], wanted, rtol=1e-5, atol=1e-5)
