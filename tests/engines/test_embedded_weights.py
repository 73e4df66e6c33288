"""New weights between rounds: versions on tokens, and caches that follow or stay."""

import threading
import time
from collections.abc import Iterator
from itertools import takewhile

import pytest
import torch
from small_policies import GREEDY, full_logits, random_prompts, run, small_policy
from torch import Tensor

from bebop.engines.base import Completion, Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.embedded.prefilled import Prefilled
from bebop.engines.embedded.prompts import Prefiller
from bebop.errors import UserError
from bebop.models.policy import Policy

# The first request ends early: its completion hands control back while the second is in flight.
PROMPTS = random_prompts((6, 9))
REQUESTS = [
    Request(id="short", prompt_tokens=PROMPTS[0], max_tokens=5, sampling=GREEDY),
    Request(id="long", prompt_tokens=PROMPTS[1], max_tokens=40, sampling=GREEDY),
]


def new_weights(kind: str) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in small_policy(kind, seed=9).backbone.state_dict().items()}


def update_in_flight(policy: Policy, kind: str, **options: object) -> Completion:
    """The long completion, whose weights change when the short one is done."""
    engine = EmbeddedEngine(policy, EmbeddedOptions(**options), version=3)  # type: ignore[arg-type]
    done: dict[str, Completion] = {}
    for completion in engine.stream(REQUESTS):
        done[completion.request_id] = completion
        if completion.request_id == "short":
            engine.load_weights(4, new_weights(kind))
    assert set(done["short"].versions) == {3}
    return done["long"]


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize("kind", ["full", "hybrid", "llama"])
def test_recomputed_rows_go_on_as_the_new_policy(kind: str, num_drafts: int) -> None:
    policy = small_policy(kind)
    old = run(policy, REQUESTS, num_draft_tokens=0)[1]
    done = update_in_flight(policy, kind, num_draft_tokens=num_drafts)
    num_old = sum(1 for _ in takewhile(lambda version: version == 3, done.versions))
    assert 1 <= num_old < 40
    assert set(done.versions[num_old:]) == {4}
    assert done.tokens[:num_old] == old.tokens[:num_old]
    continued = Request(
        id="x", prompt_tokens=PROMPTS[1] + done.tokens[:num_old], max_tokens=40 - num_old, sampling=GREEDY
    )
    assert done.tokens[num_old:] == run(policy, [continued], num_draft_tokens=0)[0].tokens
    raw = full_logits(policy, PROMPTS[1] + done.tokens)[len(PROMPTS[1]) - 1 : -1].log_softmax(-1)
    wanted = raw.gather(1, torch.tensor(done.tokens)[:, None])[num_old:, 0]
    torch.testing.assert_close(torch.tensor(done.raw_logprobs[num_old:]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["full", "hybrid"])
def test_a_kept_cache_is_the_old_one(kind: str) -> None:
    recomputed = update_in_flight(small_policy(kind), kind)
    kept = update_in_flight(small_policy(kind), kind, recompute_cache=False)
    assert kept.versions == recomputed.versions
    assert kept.raw_logprobs != recomputed.raw_logprobs


def test_waiting_completions_are_prefilled_again() -> None:
    policy = small_policy("full")
    engine = EmbeddedEngine(policy, EmbeddedOptions(max_rows=1))
    stream = engine.stream(
        [Request(id="a", prompt_tokens=PROMPTS[0], max_tokens=8, sampling=GREEDY, num_completions=2)]
    )
    first = next(stream)
    engine.load_weights(1, new_weights("full"))
    (second,) = stream
    assert first.versions == (0,) * 8
    assert second.versions == (1,) * 8
    fresh = Request(id="b", prompt_tokens=PROMPTS[0], max_tokens=8, sampling=GREEDY)
    assert second.tokens == run(policy, [fresh])[0].tokens != first.tokens


def test_new_weights_reach_the_heads_embedding_and_lm_head() -> None:
    policy = small_policy("full")
    engine = EmbeddedEngine(policy)
    embedding = policy.backbone.get_input_embeddings().weight
    assert policy.head is not None
    name = "model.embed_tokens.weight"
    engine.load_weights(1, {name: embedding * 2, "head.fuse.weight": torch.zeros_like(policy.head.fuse.weight)})
    torch.testing.assert_close(policy.embed(torch.arange(16)), embedding)
    assert policy.head.fuse.weight.abs().max() == 0
    assert policy.backbone.state_dict()[name].data_ptr() == embedding.data_ptr()


def test_weights_are_checked_before_any_is_written() -> None:
    policy = small_policy("full")
    engine = EmbeddedEngine(policy)
    before = policy.fingerprint
    good = {"model.norm.weight": torch.ones(32)}
    with pytest.raises(UserError, match="no tensor 'model\\.nrom"):
        engine.load_weights(1, good | {"model.nrom.weight": torch.ones(32)})
    with pytest.raises(UserError, match=r"shape \(31,\)"):
        engine.load_weights(1, good | {"head.output_norm.weight": torch.ones(31)})
    assert policy.fingerprint == before
    assert engine.version == 0


def test_requests_are_taken_when_a_row_is_free() -> None:
    taken: list[str] = []

    def source():
        for i in range(6):
            taken.append(str(i))
            yield None
            yield Request(id=str(i), prompt_tokens=PROMPTS[0], max_tokens=4 + 8 * (i % 2))

    engine = EmbeddedEngine(small_policy("full"), EmbeddedOptions(max_rows=2, num_draft_tokens=0))
    seen = []
    for completion in engine.stream(source()):
        seen.append(completion.request_id)
        assert len(taken) <= len(seen) + 2
    assert sorted(seen) == [str(i) for i in range(6)]


def test_weights_are_taken_while_no_request_is_ready() -> None:
    policy = small_policy()
    engine = EmbeddedEngine(policy, version=3)
    is_loaded = threading.Event()

    def source() -> Iterator[Request | None]:
        loading = threading.Thread(target=lambda: (engine.load_weights(4, new_weights("full")), is_loaded.set()))
        loading.start()
        given_up = time.monotonic() + 30
        while not is_loaded.is_set() and time.monotonic() < given_up:
            yield None
        loading_ended = is_loaded.is_set()
        yield REQUESTS[0]
        loading.join()
        assert loading_ended, "the source was asked again and again, and the weights had to wait"

    (done,) = engine.stream(source())
    assert set(done.versions) == {4}


def test_one_stream_at_a_time() -> None:
    engine = EmbeddedEngine(small_policy("full"))
    stream = engine.stream(REQUESTS)
    next(stream)
    with pytest.raises(UserError, match="already streaming"):
        engine.generate(REQUESTS)
    stream.close()
    assert len(engine.generate(REQUESTS)) == 2
    engine.close()
    assert len(engine.generate(REQUESTS)) == 2


def test_equal_prompts_are_prefilled_once_until_the_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small_policy("hybrid")
    engine = EmbeddedEngine(policy, EmbeddedOptions(max_rows=2))
    prefilled: list[int] = []
    prefill = Prefiller.prefill

    def counted(self: Prefiller, sequences: list[list[int]]) -> list[Prefilled]:
        prefilled.append(len(sequences))
        return prefill(self, sequences)

    monkeypatch.setattr(Prefiller, "prefill", counted)
    requests = [Request(id=str(i), prompt_tokens=(1, 2, 3 + i // 3), max_tokens=5, seed=i) for i in range(6)]
    together = engine.generate(requests)
    assert sum(prefilled) == 2
    assert [run(policy, [one])[0].tokens for one in requests] == [one.tokens for one in together]
    prefilled.clear()
    engine.load_weights(1, {})
    engine.generate(requests[:1])
    assert sum(prefilled) == 1
