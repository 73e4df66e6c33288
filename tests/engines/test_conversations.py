"""Turns that go on from the cache of the turn before: the same tokens, less work, bounded memory."""

from collections.abc import Iterator

import pytest
import torch
from small_policies import GREEDY, KINDS, random_prompts, small_policy, with_echo_head

from bebop.core.sampling import Sampling
from bebop.engines.base import Completion, Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.embedded.backbone import Backbone
from bebop.errors import UserError
from bebop.models.policy import Policy

OPENINGS = random_prompts((9, 5, 1, 14))
GIVEN = random_prompts((3, 7, 1, 5, 2, 6), seed=7)
NUM_TURNS = 4
PLAIN = Sampling()


def converse(engine: EmbeddedEngine, *, keep: bool, sampling: Sampling = PLAIN, between=lambda turn: None) -> dict:
    """Play conversations side by side, of four turns each; -> completions by (conversation, turn)."""
    done: dict[tuple[int, int], Completion] = {}
    contexts = [list(opening) for opening in OPENINGS]

    def ask(conversation: int, turn: int) -> Request:
        return Request(
            id=f"{conversation}/{turn}",
            prompt_tokens=tuple(contexts[conversation]),
            max_tokens=6 + conversation,
            stop_token_ids=(3,),
            sampling=sampling,
            seed=100 * conversation + turn,
            keep_cache=keep,
            continues=f"{conversation}/{turn - 1}" if keep and turn else None,
        )

    ready = [ask(conversation, 0) for conversation in range(len(OPENINGS))]

    def source() -> Iterator[Request | None]:
        while len(done) < NUM_TURNS * len(OPENINGS):
            yield ready.pop(0) if ready else None

    for completion in engine.stream(source()):
        conversation, turn = map(int, completion.request_id.split("/"))
        done[conversation, turn] = completion
        contexts[conversation] += [*completion.tokens, *GIVEN[(conversation + turn) % len(GIVEN)]]
        between(turn)
        if turn + 1 < NUM_TURNS:
            ready.append(ask(conversation, turn + 1))
    return done


def same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for key, one in left.items():
        other = right[key]
        assert (one.tokens, one.stop_reason, one.sources) == (other.tokens, other.stop_reason, other.sources)
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(torch.tensor(one.raw_logprobs), torch.tensor(other.raw_logprobs), **close)


@pytest.fixture(scope="module", params=KINDS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return small_policy(request.param)


@pytest.mark.parametrize("num_drafts", [0, 3, "auto"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.2, top_p=0.9)], ids=["greedy", "sampled"])
def test_kept_conversations_have_the_tokens_of_prefilled_ones(policy: Policy, num_drafts, sampling: Sampling) -> None:
    """Coupled, so that tokens do not depend on the draft lengths that "auto" chooses."""
    options = EmbeddedOptions(rule="coupled", num_draft_tokens=num_drafts, max_rows=3)
    kept, prefilled = EmbeddedEngine(policy, options), EmbeddedEngine(policy, options)
    done = converse(kept, keep=True, sampling=sampling)
    wanted = converse(prefilled, keep=False, sampling=sampling)
    if num_drafts == "auto":
        assert {key: one.tokens for key, one in done.items()} == {key: one.tokens for key, one in wanted.items()}
    else:
        same(done, wanted)
    assert prefilled.report().reused_tokens == 0
    assert kept.report().reused_tokens > 150


def test_stops_inside_accepted_blocks_leave_the_state_of_the_tokens_that_stand() -> None:
    """A good head's blocks reach past the stop; the recurrent states must not."""
    policy = with_echo_head(small_policy("hybrid"), 1.0)
    options = EmbeddedOptions(num_draft_tokens=5)
    kept, prefilled = EmbeddedEngine(policy, options), EmbeddedEngine(policy, options)
    done = converse(kept, keep=True)
    same(done, converse(prefilled, keep=False))
    cut = [one for one in done.values() if one.drafts.rounds + one.drafts.num_accepted > len(one.tokens)]
    assert cut and kept.report().reused_tokens > 0


def test_a_full_store_drops_the_oldest_and_stays_within_its_bound(policy: Policy) -> None:
    wanted = converse(EmbeddedEngine(policy), keep=False)
    measured = EmbeddedEngine(policy)
    converse(measured, keep=True)
    one_or_two = measured.report().kept_bytes // 3
    bounded = EmbeddedEngine(policy, EmbeddedOptions(kept_memory=one_or_two))
    same(converse(bounded, keep=True), wanted)
    assert 0 < bounded.report().kept_bytes <= one_or_two
    assert 0 < bounded.report().reused_tokens < measured.report().reused_tokens
    nothing = EmbeddedEngine(policy, EmbeddedOptions(kept_memory=0))
    same(converse(nothing, keep=True), wanted)
    assert nothing.report().reused_tokens == nothing.report().kept_bytes == 0


def test_new_weights_empty_the_store_unless_caches_are_kept() -> None:
    reused = {}
    for recompute in (True, False):
        policy = small_policy("hybrid")
        engine = EmbeddedEngine(policy, EmbeddedOptions(recompute_cache=recompute))
        converse(engine, keep=True, between=lambda turn, engine=engine: engine.load_weights(turn, {}))
        reused[recompute] = engine.report().reused_tokens
    assert reused[True] == 0 < reused[False]


def test_a_conversation_after_new_weights_is_that_of_the_new_policy() -> None:
    policy = small_policy("full")
    engine = EmbeddedEngine(policy)
    new = {name: t.clone() for name, t in small_policy("full", seed=9).backbone.state_dict().items()}
    first = Request(id="a", prompt_tokens=OPENINGS[0], max_tokens=8, sampling=GREEDY, keep_cache=True)
    stream_source: list[Request] = [first]

    def source() -> Iterator[Request | None]:
        while stream_source or len(done) < 2:
            yield stream_source.pop(0) if stream_source else None

    done: list[Completion] = []
    for completion in engine.stream(source()):
        done.append(completion)
        if len(done) == 1:
            engine.load_weights(1, new)
            longer = (*OPENINGS[0], *completion.tokens, 1, 2)
            stream_source.append(Request(id="b", prompt_tokens=longer, max_tokens=8, sampling=GREEDY, continues="a"))
    fresh = EmbeddedEngine(small_policy("full", seed=9)).generate(
        [Request(id="b", prompt_tokens=longer, max_tokens=8, sampling=GREEDY)]
    )
    assert done[1].tokens == fresh[0].tokens


def test_a_prompt_that_is_no_continuation_is_prefilled(policy: Policy) -> None:
    engine = EmbeddedEngine(policy)
    requests = [
        Request(id="a", prompt_tokens=OPENINGS[0], max_tokens=4, keep_cache=True),
        Request(id="b", prompt_tokens=OPENINGS[1], max_tokens=4, continues="a"),
        Request(id="c", prompt_tokens=OPENINGS[1], max_tokens=4, continues="nobody"),
    ]
    one_by_one = EmbeddedEngine(policy, EmbeddedOptions(max_rows=1)).generate(requests)
    plain = [
        EmbeddedEngine(policy).generate([Request(id=r.id, prompt_tokens=r.prompt_tokens, max_tokens=4)])[0]
        for r in requests
    ]
    assert [one.tokens for one in one_by_one] == [one.tokens for one in plain]
    assert engine.report().reused_tokens == 0


def test_the_new_tokens_alone_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small_policy("full")
    prefilled: list[int] = []
    original = Backbone.prefill

    def prefill(self, tokens_RT, lengths_R):
        prefilled.append(int(lengths_R.sum()))
        return original(self, tokens_RT, lengths_R)

    monkeypatch.setattr(Backbone, "prefill", prefill)
    converse(EmbeddedEngine(policy), keep=True)
    assert sum(prefilled) == sum(len(opening) - 1 for opening in OPENINGS)


def test_a_context_can_be_kept_for_one_completion_only() -> None:
    with pytest.raises(UserError, match="set num_completions to 1"):
        Request(id="a", prompt_tokens=(1,), max_tokens=1, keep_cache=True, num_completions=2)
    with pytest.raises(UserError, match="kept_memory is -1"):
        EmbeddedOptions(kept_memory=-1)


def test_conversations_of_unlike_lengths_are_continued_together() -> None:
    """The window of both is as long as the longer context and the longer addition together, which neither needs."""
    policy = small_policy()
    openings = dict(zip("ab", random_prompts((600, 20)), strict=True))
    given = dict(zip("ab", random_prompts((10, 400), seed=3), strict=True))

    def second_turns(keep: bool) -> list[Completion]:
        engine = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3, max_rows=2, max_context=1024))
        contexts, done = {name: list(prompt) for name, prompt in openings.items()}, []

        def source() -> Iterator[Request | None]:
            for name in openings:
                yield ask(name, 0)
            while len(done) < 2:
                yield None
            for name in openings:
                yield ask(name, 1)

        def ask(name: str, turn: int) -> Request:
            return Request(
                id=f"{name}{turn}",
                prompt_tokens=tuple(contexts[name]),
                max_tokens=4,
                sampling=GREEDY,
                keep_cache=keep,
                continues=f"{name}0" if keep and turn else None,
            )

        for completion in engine.stream(source()):
            done.append(completion)
            name = completion.request_id[0]
            contexts[name] += [*completion.tokens, *given[name]]
        return sorted(done[2:], key=lambda one: one.request_id)

    assert [one.tokens for one in second_turns(keep=True)] == [one.tokens for one in second_turns(keep=False)]
