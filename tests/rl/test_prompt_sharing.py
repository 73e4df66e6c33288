"""Sharing prompts changes what is computed, never what comes out: values, gradients, in any order and grouping."""

import copy

import pytest
import torch

from bebop.rl.prompt_sharing import lay_out, run_layout
from bebop.tasks.chat import Transcript
from bebop.training.packing import can_be_packed
from tests.engines.small_policies import KINDS
from tests.engines.small_policies import small_policy as policy_of_kind

VOCAB = 16


def attempts(prompts=((3, 1, 4, 1, 5), (9, 2), (3, 1, 4))):
    """Attempts at several problems, of unequal length, the longest last; one is its prompt alone, one has two turns."""
    generator = torch.Generator().manual_seed(0)
    found = [Transcript([7, 7, 7], [False] * 3)]
    for number, prompt in enumerate(prompts):
        for place in range(4):
            answer = torch.randint(0, VOCAB, (2 + 3 * place + number,), generator=generator).tolist()
            is_model = [True] * len(answer)
            if place == 3:
                is_model[2:5] = [False] * 3
            found.append(Transcript([*prompt, *answer], [*[False] * len(prompt), *is_model]))
    return sorted(found, key=lambda one: len(one.tokens))


def test_every_token_is_laid_out_and_prompts_once():
    rollouts = attempts()
    layout = lay_out(rollouts)
    num_tokens = sum(len(one.tokens) for one in rollouts)
    assert len(layout.tokens_U) == num_tokens - 3 * (5 + 2 + 3)
    rows = [
        (row, source)
        for block in layout.blocks
        for row, source in zip(block.rows.tokens_BT, block.source_BT, strict=True)
    ]
    places = torch.cat([block.rows.tokens_BT.flatten() for block in layout.blocks])
    assert torch.equal(places[layout.place_U], layout.tokens_U)
    for one, (row, source) in zip(rollouts, rows, strict=True):
        mine = source[: len(one.tokens)]
        assert row[: len(one.tokens)].tolist() == one.tokens == layout.tokens_U[mine].tolist()
        assert layout.positions_U[mine].tolist() == list(range(len(one.tokens)))
    for block in layout.blocks:
        lengths = [len(one.tokens) for one in rollouts if len(one.tokens) <= block.rows.tokens_BT.shape[1]]
        assert block.rows.tokens_BT.shape[1] == max(lengths)
    before = [
        (one.tokens[place - 1], one.tokens[place])
        for one in rollouts
        for place, is_model in enumerate(one.is_model)
        if is_model
    ]
    assert list(zip(layout.tokens_U[layout.before_N].tolist(), layout.written_N.tolist(), strict=True)) == before


def results(policy, share):
    """States and gradients of some function of the states that predict written tokens."""
    policy = copy.deepcopy(policy)
    policy.backbone.requires_grad_(True)
    states = run_layout(policy, lay_out(attempts()), share=share)
    torch.manual_seed(0)
    (states.before_NH * torch.randn_like(states.before_NH)).sum().backward()
    gradients = {name: one.grad for name, one in policy.backbone.named_parameters() if one.grad is not None}
    return states, gradients


@pytest.mark.parametrize("kind", KINDS)
def test_shared_and_whole_rows_give_the_same_states_and_gradients(kind):
    policy = policy_of_kind(kind, vocabulary=VOCAB)
    (shared, shared_gradients), (whole, whole_gradients) = results(policy, True), results(policy, False)
    torch.testing.assert_close(shared.output_UH, whole.output_UH, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(shared.draft_UH, whole.draft_UH, atol=2e-5, rtol=1e-4)
    assert shared_gradients.keys() == whole_gradients.keys()
    for name, one in whole_gradients.items():
        torch.testing.assert_close(shared_gradients[name], one, atol=1e-5 * one.abs().max().item(), rtol=1e-3)


def test_a_backbone_with_recurrent_layers_runs_whole_rows():
    policy = policy_of_kind("hybrid", vocabulary=VOCAB)
    assert not can_be_packed(policy.config)
    shared, whole = results(policy, True)[0], results(policy, False)[0]
    assert torch.equal(shared.output_UH, whole.output_UH)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_rows_are_each_rollout_alone(kind):
    policy = policy_of_kind(kind, vocabulary=VOCAB)
    rollouts = attempts()
    layout = lay_out(rollouts)
    with torch.no_grad():
        states = run_layout(policy, layout)
        rows = [source for block in layout.blocks for source in block.source_BT]
        for one, source in zip(rollouts, rows, strict=True):
            alone = policy.run_backbone(torch.tensor([one.tokens]))
            torch.testing.assert_close(
                states.output_UH[source[: len(one.tokens)]], alone.hidden_BTH[0], atol=2e-5, rtol=1e-4
            )


def test_the_backbone_attends_as_before_afterwards_also_when_it_fails():
    policy = policy_of_kind("full", vocabulary=VOCAB)
    before = policy.config._attn_implementation
    layout = lay_out(attempts())
    run_layout(policy, layout)
    assert policy.config._attn_implementation == before
    with torch.no_grad(), pytest.raises(IndexError):
        run_layout(policy, lay_out([Transcript([VOCAB + 5, 1], [False, True])]))
    assert policy.config._attn_implementation == before


def test_heads_get_the_same_states_as_rows_and_no_graph():
    policy = policy_of_kind("full", vocabulary=VOCAB)
    policy.backbone.requires_grad_(True)
    layout = lay_out(attempts())
    states = run_layout(policy, layout)
    assert states.output_UH.requires_grad
    for (rows, hiddens), block in zip(states.hiddens(), layout.blocks, strict=True):
        alone = policy.run_backbone(rows.tokens_BT)
        assert rows is block.rows
        assert not hiddens.target_BTH.requires_grad and not hiddens.draft_input_BTH.requires_grad
        for found_BTH, expected_BTH in (
            (hiddens.target_BTH, alone.hidden_BTH),
            (hiddens.draft_input_BTH, alone.draft_input_BTH),
        ):
            width = rows.is_target_BT.int().cumsum(-1).argmax(-1) + 1
            for row, length in enumerate(width.tolist()):
                torch.testing.assert_close(
                    found_BTH[row, :length], expected_BTH[row, :length].detach(), atol=2e-5, rtol=1e-4
                )
