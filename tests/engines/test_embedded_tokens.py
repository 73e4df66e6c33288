"""Which tokens the engine emits: transformers' greedy ones, and the same whatever shares the batch or is drafted."""

import pytest
import torch
from small_policies import (
    GREEDY,
    KINDS,
    full_logits,
    greedy_reference,
    random_prompts,
    run,
    small_policy,
    with_echo_head,
)

from bebop.core.acceptance import entropy
from bebop.core.sampling import Sampling, distribution
from bebop.engines.base import Request, StopReason, TokenSource
from bebop.engines.embedded.selection import _entropy
from bebop.models.policy import Policy

RULES = ("rejection", "block", "target_only", "coupled")
PROMPTS = random_prompts((9, 5, 1, 2, 17, 3))
SETTINGS = (
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=5),
    GREEDY,
    Sampling(top_p=0.8),
    Sampling(min_p=0.1),
    Sampling(temperature=0.9, top_k=9, top_p=0.9),
)


@pytest.fixture(scope="module", params=KINDS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return small_policy(request.param)


def requests(max_tokens: int = 20, sampling: tuple[Sampling, ...] = SETTINGS, **settings: int) -> list[Request]:
    return [
        Request(
            id=str(i), prompt_tokens=prompt, max_tokens=max_tokens, sampling=sampling[i % len(sampling)], **settings
        )
        for i, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_drafts", [0, 1, 3])
def test_greedy_tokens_are_those_of_transformers(policy: Policy, rule: str, num_drafts: int) -> None:
    wanted = [greedy_reference(policy, prompt, 20) for prompt in PROMPTS]
    done = run(policy, requests(sampling=(GREEDY,)), rule=rule, num_draft_tokens=num_drafts, max_rows=4)
    assert [completion.tokens for completion in done] == wanted


def test_greedy_tokens_do_not_depend_on_the_head(policy: Policy) -> None:
    wanted = [greedy_reference(policy, prompt, 20) for prompt in PROMPTS]
    accepted = []
    for sign in (1.0, -1.0):
        done = run(with_echo_head(policy, sign), requests(sampling=(GREEDY,)), num_draft_tokens=4)
        assert [completion.tokens for completion in done] == wanted
        accepted.append(sum(completion.drafts.num_accepted for completion in done))
    assert accepted[0] > accepted[1]


def test_coupled_tokens_are_the_same_for_every_draft_length(policy: Policy) -> None:
    wanted = run(policy, requests(num_completions=3), rule="coupled", num_draft_tokens=0, max_rows=5)
    for num_drafts in (1, 2, 3, 5):
        done = run(policy, requests(num_completions=3), rule="coupled", num_draft_tokens=num_drafts, max_rows=7)
        assert [completion.tokens for completion in done] == [completion.tokens for completion in wanted]
    assert len({completion.tokens for completion in wanted}) > len(PROMPTS)


def test_a_thousand_coupled_requests_are_the_same_with_and_without_drafts() -> None:
    policy = with_echo_head(small_policy("full"), 1.0)
    many = [
        Request(id=str(i), prompt_tokens=PROMPTS[i % len(PROMPTS)], max_tokens=16, sampling=SETTINGS[i % 6], seed=i)
        for i in range(1000)
    ]
    plain = run(policy, many, rule="coupled", num_draft_tokens=0, max_rows=500)
    drafted = run(policy, many, rule="coupled", num_draft_tokens=4, max_rows=333)
    assert [completion.tokens for completion in drafted] == [completion.tokens for completion in plain]
    assert sum(completion.drafts.num_accepted for completion in drafted) > 1000


@pytest.mark.parametrize("rule", RULES)
def test_tokens_do_not_depend_on_the_batch(policy: Policy, rule: str) -> None:
    together = run(policy, requests(), rule=rule, max_rows=6)
    few_rows = run(policy, requests(), rule=rule, max_rows=2)
    alone = [run(policy, [one], rule=rule)[0] for one in requests()]
    assert [c.tokens for c in together] == [c.tokens for c in few_rows] == [c.tokens for c in alone]
    assert [c.sources for c in together] == [c.sources for c in alone]


def test_seeds_and_completions_differ(policy: Policy) -> None:
    prompt = PROMPTS[0]
    first, again, other = (
        run(policy, [Request(id="a", prompt_tokens=prompt, max_tokens=30, seed=seed, num_completions=2)])
        for seed in (1, 1, 2)
    )
    assert [c.tokens for c in first] == [c.tokens for c in again]
    assert len({c.tokens for c in (*first, *other)}) == 4


def test_completions_of_one_prompt_equal_those_of_separate_requests(policy: Policy) -> None:
    shared = run(policy, [Request(id="a", prompt_tokens=PROMPTS[4], max_tokens=12, num_completions=5)], max_rows=2)
    assert [c.index for c in shared] == [0, 1, 2, 3, 4]
    first = run(policy, [Request(id="b", prompt_tokens=PROMPTS[4], max_tokens=12)])
    assert shared[0].tokens == first[0].tokens


def test_each_request_may_have_its_own_draft_length(policy: Policy) -> None:
    mixed = [
        Request(id=str(i), prompt_tokens=prompt, max_tokens=20, num_draft_tokens=i % 4, sampling=SETTINGS[i])
        for i, prompt in enumerate(PROMPTS)
    ]
    together = run(policy, mixed)
    alone = [run(policy, [one])[0] for one in mixed]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [len(c.drafts.drafted) for c in together] == [i % 4 for i in range(len(PROMPTS))]
    assert set(together[0].sources) == {TokenSource.SAMPLED}


def test_the_entropy_of_tokens_that_the_policy_excludes_is_none() -> None:
    """Logits of -inf, as of a padded vocabulary, have p = 0 and add nothing."""
    logits_11V = torch.tensor([[[1.0, -torch.inf, 0.5, -2.0, -torch.inf]]])
    probs_11V = logits_11V.softmax(-1)
    found_11 = _entropy(logits_11V.clone(), probs_11V, torch.tensor([[2]]), probs_11V[..., 2].log())
    torch.testing.assert_close(found_11, entropy(probs_11V))


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_records_are_those_of_a_forward_without_cache(policy: Policy, num_drafts: int) -> None:
    for request, done in zip(requests(), run(policy, requests(), num_draft_tokens=num_drafts), strict=True):
        start = len(request.prompt_tokens) - 1
        logits_TV = full_logits(policy, request.prompt_tokens + done.tokens)[start:-1]
        probs_TV = distribution(logits_TV, request.sampling)
        tokens_T1 = torch.tensor(done.tokens)[:, None]
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(torch.tensor(done.logprobs), probs_TV.gather(1, tokens_T1)[:, 0].log(), **close)
        raw_T = logits_TV.log_softmax(-1).gather(1, tokens_T1)[:, 0]
        torch.testing.assert_close(torch.tensor(done.raw_logprobs), raw_T, **close)
        torch.testing.assert_close(torch.tensor(done.entropies), entropy(probs_TV), **close)
        assert done.stop_reason is StopReason.MAX_TOKENS
        assert len(done.tokens) == len(done.sources) == len(done.versions) == done.drafts.emitted == 20


def test_statistics_add_up() -> None:
    policy = with_echo_head(small_policy("full"), 1.0)
    (done,) = run(policy, [Request(id="a", prompt_tokens=PROMPTS[0], max_tokens=200)], num_draft_tokens=3)
    drafts = done.drafts
    assert drafts.drafted == (drafts.rounds,) * 3
    assert drafts.reached == (drafts.rounds, *drafts.accepted[:2])
    assert 0 < drafts.num_accepted == sum(source is TokenSource.DRAFTED for source in done.sources)
    assert drafts.rounds + drafts.num_accepted == len(done.tokens)
    for overlap, reached, accepted in zip(drafts.overlaps, drafts.reached, drafts.accepted, strict=True):
        assert 0 < overlap < reached
        assert abs(overlap - accepted) < 4 * (reached / 4) ** 0.5
