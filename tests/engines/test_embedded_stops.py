"""Where completions end: exactly at the stop token, stop string or limit, also inside an accepted block."""

import math
from dataclasses import dataclass

import pytest
import torch
from small_policies import CONTEXT, GREEDY, random_prompts, run, small_policy, with_echo_head

from bebop.core.sampling import Sampling
from bebop.engines.base import Request, StopReason
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.errors import UserError
from bebop.models.policy import Policy

PROMPT = random_prompts((6,))[0]
LETTERS = "abcdefghijklmnop"


@dataclass
class LetterTokenizer:
    """Token i is the i-th letter."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(LETTERS[token] for token in tokens)


@pytest.fixture(scope="module")
def policy() -> Policy:
    good = with_echo_head(small_policy("full"), 1.0)
    return Policy(backbone=good.backbone, head=good.head, tokenizer=LetterTokenizer(), contract=good.contract)  # type: ignore[arg-type]


def ask(policy: Policy, **settings: object) -> Request:
    return Request(**({"id": "a", "prompt_tokens": PROMPT, "max_tokens": 40} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_drafts", [0, 1, 4])
def test_a_stop_token_ends_the_completion_and_stays_in_it(policy: Policy, num_drafts: int) -> None:
    for seed in range(5):
        (whole,) = run(policy, [ask(policy, seed=seed)], num_draft_tokens=num_drafts)
        for stop in range(0, 16, 3):
            (cut,) = run(policy, [ask(policy, seed=seed, stop_token_ids=(stop, 99))], num_draft_tokens=num_drafts)
            found = stop in whole.tokens
            wanted = whole.tokens[: whole.tokens.index(stop) + 1] if found else whole.tokens
            assert cut.tokens == wanted
            assert cut.stop_reason is (StopReason.STOP_TOKEN if found else StopReason.MAX_TOKENS)
            assert len(cut.logprobs) == len(cut.sources) == cut.drafts.emitted == len(cut.tokens)


@pytest.mark.parametrize("num_drafts", [0, 4])
def test_a_stop_string_ends_the_completion_with_the_token_that_completes_it(policy: Policy, num_drafts: int) -> None:
    (whole,) = run(policy, [ask(policy)], num_draft_tokens=num_drafts)
    text = LetterTokenizer().decode(list(whole.tokens))
    for start in range(0, 30, 5):
        stop = text[start : start + 3]
        (cut,) = run(policy, [ask(policy, stop_strings=("zzz", stop))], num_draft_tokens=num_drafts)
        assert LetterTokenizer().decode(list(cut.tokens)) == text[: text.index(stop) + 3]
        assert cut.stop_reason is StopReason.STOP_STRING


def test_the_prompt_is_not_searched_for_stop_strings(policy: Policy) -> None:
    (whole,) = run(policy, [ask(policy, max_tokens=5)])
    text = LetterTokenizer().decode([*PROMPT, *whole.tokens])
    across = text[len(PROMPT) - 2 : len(PROMPT) + 1]
    (cut,) = run(policy, [ask(policy, max_tokens=5, stop_strings=(across,))])
    assert cut.stop_reason is StopReason.MAX_TOKENS or across in text[len(PROMPT) :]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 9])
def test_max_tokens_cuts_blocks(policy: Policy, max_tokens: int) -> None:
    (whole,) = run(policy, [ask(policy, sampling=GREEDY)], num_draft_tokens=4)
    (cut,) = run(policy, [ask(policy, sampling=GREEDY, max_tokens=max_tokens)], num_draft_tokens=4)
    assert cut.tokens == whole.tokens[:max_tokens]
    assert cut.stop_reason is StopReason.MAX_TOKENS


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_the_context_ends_a_completion(policy: Policy, num_drafts: int) -> None:
    prompt = random_prompts((CONTEXT - 5,))[0]
    (done,) = run(policy, [ask(policy, prompt_tokens=prompt)], num_draft_tokens=num_drafts)
    assert len(done.tokens) == 5
    assert done.stop_reason is StopReason.CONTEXT


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_not_finite_logits_end_their_request_alone(num_drafts: int) -> None:
    policy = small_policy("hybrid")
    prompts = random_prompts((5, 6, 7, 8), vocabulary=15)
    requests = [
        Request(id=str(i), prompt_tokens=(*p, 15) if i == 1 else p, max_tokens=30, sampling=Sampling(top_k=3))
        for i, p in enumerate(prompts)
    ]
    healthy = run(policy, [r for r in requests if r.id != "1"], num_draft_tokens=num_drafts)
    with torch.no_grad():
        policy.backbone.get_input_embeddings().weight[15] = math.nan
    # Row 1 poisons its slot, which a later request takes over.
    done = run(policy, requests, max_rows=2, num_draft_tokens=num_drafts)
    assert done[1].stop_reason is StopReason.NOT_FINITE
    assert done[1].tokens == ()
    for completion, wanted in zip([done[0], *done[2:]], healthy, strict=True):
        # Token 15 ends a row that emits it, and one that only drafts it, since the window then holds NaN.
        clean = wanted.tokens.index(15) + 1 if 15 in wanted.tokens else 30
        assert completion.tokens == wanted.tokens[: len(completion.tokens)]
        assert len(completion.tokens) == clean or num_drafts > 0
        assert all(math.isfinite(value) for value in completion.logprobs)


def test_a_head_that_says_nan_costs_speed_alone() -> None:
    policy = small_policy("full")
    assert policy.head is not None
    wanted = run(policy, [ask(policy, sampling=GREEDY)], num_draft_tokens=0)
    with torch.no_grad():
        policy.head.fuse.weight.fill_(math.nan)
    done = run(policy, [ask(policy, sampling=GREEDY)], num_draft_tokens=3)
    assert done[0].tokens == wanted[0].tokens
    sampled = run(policy, [ask(policy)], num_draft_tokens=3)
    assert all(math.isfinite(value) for value in sampled[0].logprobs)


def test_bad_requests_are_refused_by_name(policy: Policy) -> None:
    for settings, words in (
        ({"prompt_tokens": ()}, "empty prompt"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"num_completions": 0}, "num_completions 0"),
        ({"num_draft_tokens": -1}, "num_draft_tokens -1"),
        ({"stop_strings": ("",)}, "empty stop string"),
        ({"prompt_tokens": (1,) * CONTEXT}, "shorten the prompt"),
        ({"prompt_tokens": (16,)}, "outside the vocabulary"),
        ({"prompt_tokens": (1, 16)}, "outside the vocabulary"),
        ({"num_draft_tokens": 9}, "asks for 9 draft tokens"),
    ):
        with pytest.raises(UserError, match=words):
            run(policy, [ask(policy, **settings)])
    with pytest.raises(ValueError, match="temperature is -1"):
        Sampling(temperature=-1.0)
    with pytest.raises(UserError, match="no tokenizer"):
        run(small_policy(), [ask(policy, stop_strings=("a",))])
    with pytest.raises(UserError, match="set its num_draft_tokens above 0"):
        run(policy, [ask(policy, num_draft_tokens=2)], num_draft_tokens=0)
    with pytest.raises(UserError, match="same id"):
        run(policy, [ask(policy), ask(policy)])


def test_bad_options_are_refused_by_name(policy: Policy) -> None:
    for settings, words in (
        ({"num_draft_tokens": 17}, "num_draft_tokens is 17"),
        ({"num_draft_tokens": "many"}, "'many'"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"rule": "greedy"}, "'greedy'"),
    ):
        with pytest.raises(UserError, match=words):
            run(policy, [ask(policy)], **settings)
    headless = Policy(backbone=policy.backbone)
    with pytest.raises(UserError, match="no MTP head"):
        EmbeddedEngine(headless)
    assert run(headless, [ask(policy, max_tokens=3)], num_draft_tokens=0)[0].drafts.rounds == 3


def test_out_of_memory_names_the_setting(policy: Policy) -> None:
    with pytest.raises(UserError, match="lower max_rows"):
        EmbeddedEngine(policy, EmbeddedOptions(max_rows=1 << 42)).generate([ask(policy)])
