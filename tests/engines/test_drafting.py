"""Drafts of the engine equal those of the head run step by step from scratch, in the ``ttt`` layout."""

import pytest
import torch
from small_policies import KINDS, random_prompts, run, small_policy
from torch import Tensor
from transformers import DynamicCache

from bebop.core.sampling import Sampling
from bebop.engines.base import Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.embedded.selection import Selector
from bebop.models.policy import Policy

NUM_DRAFTS = 4


@torch.no_grad()
def reference_outputs(policy: Policy, tokens: list[int], drafts: list[int]) -> list[Tensor]:
    """What enters the lm_head at each depth: keys of settled positions from target hiddens, then the chain's own."""
    assert policy.head is not None
    hidden_1TH = policy.run_backbone(torch.tensor([tokens])).draft_input_BTH[:, :-1]
    cache = DynamicCache()
    positions = torch.arange(len(tokens) - 1)[None]
    state = policy.head(hidden_1TH, policy.embed(torch.tensor([tokens[1:]])), positions, cache=cache)
    outputs = [state.output_BTH[0, -1]]
    recycle = state.recycle_BTH[:, -1:]
    for depth, draft in enumerate(drafts[:-1]):
        position = torch.tensor([[len(tokens) - 1 + depth]])
        state = policy.head(recycle, policy.embed(torch.tensor([[draft]])), position, cache=cache)
        outputs.append(state.output_BTH[0, 0])
        recycle = state.recycle_BTH
    return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_equal_a_fresh_step_by_step_draft(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small_policy(kind)
    seen: list[list[tuple[Tensor, Tensor]]] = []
    original = Selector.choose

    def choose(self: Selector, output_BH: Tensor, depth: int) -> Tensor:
        tokens_B = original(self, output_BH, depth)
        if depth == 0:
            seen.append([])
        seen[-1].append((output_BH.clone(), tokens_B.clone()))
        return tokens_B

    monkeypatch.setattr(Selector, "choose", choose)
    prompts = random_prompts((7, 3, 5))
    requests = [Request(id=str(i), prompt_tokens=p, max_tokens=24, seed=i) for i, p in enumerate(prompts)]
    done = run(policy, requests, num_draft_tokens=NUM_DRAFTS, max_rows=3)
    assert any(completion.drafts.num_accepted for completion in done)
    # Until the first row ends, slot b holds row b.
    histories = [list(p) + list(c.tokens) for p, c in zip(prompts, done, strict=True)]
    starts = [len(p) for p in prompts]
    for depths in seen[:4]:
        for row in range(3):
            drafts = [int(tokens_B[row]) for _, tokens_B in depths]
            known = histories[row][: starts[row]]
            wanted = reference_outputs(policy, known, drafts)
            for (output_BH, _), expected in zip(depths, wanted, strict=True):
                torch.testing.assert_close(output_BH[row], expected, rtol=1e-4, atol=1e-5)
            starts[row] += emitted(histories[row][starts[row] :], drafts)


def emitted(future: list[int], drafts: list[int]) -> int:
    """Tokens of the round: the drafts that stood and one more."""
    agree = 0
    while agree < len(drafts) and agree < len(future) and future[agree] == drafts[agree]:
        agree += 1
    return min(agree + 1, len(drafts) + 1)


def test_recomputed_distributions_give_the_same_tokens() -> None:
    """With no memory for [B, K, V], the hidden states are kept instead; tokens and chunks do not change."""
    policy = small_policy("full")
    requests = [
        Request(id=str(i), prompt_tokens=p, max_tokens=24, seed=i, sampling=Sampling(top_k=6))
        for i, p in enumerate(random_prompts((7, 3, 5, 4, 6)))
    ]
    kept = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3))
    frugal = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3, draft_memory=1, verify_memory=2500))
    assert [c.tokens for c in kept.generate(requests)] == [c.tokens for c in frugal.generate(requests)]
    assert kept.report().draft_bytes == 5 * 3 * 16 * 4
    assert frugal.report().draft_bytes == 5 * 3 * 32 * 4
