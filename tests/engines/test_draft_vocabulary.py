"""A head that may draft few tokens: what it drafts, and that it changes the drafts alone."""

from dataclasses import replace

import pytest
import torch
from small_policies import GREEDY, greedy_reference, random_prompts, run, small_policy, with_echo_head

from bebop.core.sampling import Sampling, distribution, draw, stack_sampling
from bebop.engines.base import Completion, Request, TokenSource
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.embedded.draft_vocabulary import DraftVocabulary
from bebop.models.policy import Policy

FEW = (0, 3, 6, 7, 11)
PROMPTS = random_prompts((3, 5, 9, 4))


def policy_of_few(kind: str = "full") -> Policy:
    return replace(with_echo_head(small_policy(kind), 1.0), draft_vocabulary=FEW)


def requests(sampling: Sampling, num_tokens: int = 24) -> list[Request]:
    return [
        Request(id=str(i), prompt_tokens=prompt, max_tokens=num_tokens, sampling=sampling, seed=i)
        for i, prompt in enumerate(PROMPTS)
    ]


def accepted(completions: list[Completion]) -> set[int]:
    pairs = [pair for one in completions for pair in zip(one.tokens, one.sources, strict=True)]
    return {token for token, source in pairs if source is TokenSource.DRAFTED}


def test_nothing_else_is_drafted_and_everything_is_emitted() -> None:
    completions = run(policy_of_few(), requests(Sampling()))
    assert accepted(completions) and accepted(completions) <= set(FEW)
    assert {token for one in completions for token in one.tokens} > set(FEW)


def test_the_option_gives_the_head_every_token() -> None:
    assert not accepted(run(policy_of_few(), requests(Sampling()), draft_vocabulary=False)) <= set(FEW)


@pytest.mark.parametrize("kind", ["full", "hybrid", "llama"])
def test_greedy_tokens_are_the_policys(kind: str) -> None:
    policy = replace(small_policy(kind), draft_vocabulary=FEW)
    for done, prompt in zip(run(policy, requests(GREEDY)), PROMPTS, strict=True):
        assert done.tokens == greedy_reference(policy, prompt, 24)


def test_distributions_that_are_computed_again_say_the_same() -> None:
    kept, again = (run(policy_of_few(), requests(Sampling()), draft_memory=size) for size in (1 << 20, 1))
    assert [one.tokens for one in kept] == [one.tokens for one in again]
    assert [one.sources for one in kept] == [one.sources for one in again]


def test_new_weights_reach_the_rows_of_the_lm_head_that_drafts() -> None:
    policy, other = policy_of_few(), replace(small_policy(seed=5), draft_vocabulary=FEW)
    policy = replace(policy, head=small_policy().head)
    engine = EmbeddedEngine(policy, EmbeddedOptions())
    engine.generate(requests(Sampling()))
    state = {name: tensor.clone() for name, tensor in other.backbone.state_dict().items()}
    engine.load_weights(1, state)
    fresh = EmbeddedEngine(replace(other, head=policy.head), EmbeddedOptions())
    ours, theirs = engine.generate(requests(Sampling())), fresh.generate(requests(Sampling()))
    assert [one.sources for one in ours] == [one.sources for one in theirs]


def test_draft_logits_are_the_whole_ones_where_they_are_not_hidden() -> None:
    policy = policy_of_few()
    logits = torch.randn(2, 3, 16)
    hidden = policy.hide_undrafted(logits)
    outside = sorted(set(range(16)) - set(FEW))
    assert torch.equal(hidden[..., list(FEW)], logits[..., list(FEW)])
    assert bool((hidden[..., outside] == float("-inf")).all())
    assert replace(policy, draft_vocabulary=None).hide_undrafted(logits) is logits


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.6, top_k=3), Sampling(top_p=0.8), GREEDY])
def test_its_law_is_the_heads_with_other_tokens_hidden(sampling: Sampling) -> None:
    policy = policy_of_few()
    vocabulary = DraftVocabulary.of(policy)
    assert vocabulary is not None and vocabulary.size == len(FEW)
    output_NH = 3 * torch.randn(6, policy.config.hidden_size, generator=torch.Generator().manual_seed(0))
    tensors = stack_sampling([sampling] * 6, policy.device)
    with torch.no_grad():
        few_NS = distribution(vocabulary.logits(output_NH), tensors)
        expected_NV = distribution(policy.hide_undrafted(policy.logits(output_NH)), tensors)
    torch.testing.assert_close(vocabulary.spread(few_NS[:, None])[:, 0], expected_NV, rtol=1e-5, atol=1e-6)
    uniform_N = torch.rand(6, generator=torch.Generator().manual_seed(1)).to(few_NS.dtype)
    assert torch.equal(vocabulary.choose(draw, few_NS, uniform_N), draw(expected_NV, uniform_N))
