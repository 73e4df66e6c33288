"""Drafts of the engine equal those of the head run step by step from scratch, in the ``ttt`` layout."""

import itertools

import pytest
import torch
from small_policies import KINDS, full_logits, random_prompts, run, small_policy
from torch import Tensor
from transformers import DynamicCache

from bebop.core.sampling import Sampling, distribution
from bebop.engines.base import Request, TokenSource
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


def rounds_of(sources: tuple[TokenSource, ...]) -> list[range]:
    """The places that each round emitted: drafts, then one token that was not; a stop may have cut the last."""
    ends = [place + 1 for place, source in enumerate(sources) if source is not TokenSource.DRAFTED]
    bounds = sorted({0, *ends, len(sources)})
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["rejection", "target_only"])
def test_draft_records_compare_the_head_with_the_target_at_the_emitted_tokens(kind: str, rule: str) -> None:
    policy = small_policy(kind)
    sampling = Sampling(temperature=1.2, top_p=0.95)
    (prompt,) = random_prompts((7,))
    asked = Request(id="a", prompt_tokens=prompt, max_tokens=30, sampling=sampling)
    (done,) = run(policy, [asked], num_draft_tokens=2, rule=rule)
    target_TV = distribution(full_logits(policy, prompt + done.tokens)[len(prompt) - 1 : -1], sampling)
    for places in rounds_of(done.sources):
        outputs = reference_outputs(
            policy, list(prompt + done.tokens[: places.start]), list(done.tokens[places.start :])
        )
        for place, output_H in zip(places[:2], outputs, strict=False):
            draft_V = distribution(policy.logits(output_H[None]), sampling)[0]
            shared = torch.minimum(draft_V, target_TV[place]).sum()
            overlap = shared if rule == "rejection" else target_TV[place, draft_V.argmax()]
            assert done.overlaps[place] == pytest.approx(float(overlap), abs=1e-4)
            assert done.draft_logprobs[place] == pytest.approx(float(draft_V[done.tokens[place]].log()), abs=1e-4)
    kinds = {source: [i for i, one in enumerate(done.sources) if one is source] for source in TokenSource}
    assert len(kinds[TokenSource.DRAFTED]) > 2 and len(kinds[TokenSource.CORRECTED]) > 2
    assert all(done.overlaps[i] is done.draft_logprobs[i] is None for i in kinds[TokenSource.BONUS])


def test_draft_records_are_none_where_nothing_was_drafted_or_measured() -> None:
    policy = small_policy("full")
    asked = Request(id="a", prompt_tokens=(1, 2, 3), max_tokens=30)
    (done,) = run(policy, [asked], num_draft_tokens=3)
    # The statistics count the last round whole, the tokens end where it was cut.
    cut = sum(done.drafts.overlaps) - sum(value for value in done.overlaps if value is not None)
    assert 0 <= cut < 3
    (plain,) = run(policy, [asked], num_draft_tokens=0)
    assert set(plain.draft_logprobs) == set(plain.overlaps) == {None}
    (unmeasured,) = run(policy, [asked], num_draft_tokens=3, measure_overlap=False)
    assert set(unmeasured.overlaps) == {None}
    assert unmeasured.draft_logprobs == done.draft_logprobs


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
