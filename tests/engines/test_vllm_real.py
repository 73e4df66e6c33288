"""vLLM's CPU build against the embedded engine: greedy tokens, log-probs, acceptance, weights after updates.

Run by `make test-vllm`. float32 agrees to 1e-4 nats; bfloat16, which vLLM's Gated DeltaNet is bound to, to 0.1
or, after random changes of the weights, to twice what bfloat16 does to the same model elsewhere.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_policies import GREEDY, full_logits, random_prompts
from torch import Tensor
from transformers import PreTrainedModel

from bebop.audit.policies import DraftKind, Format, PolicyRecipe, write_policy
from bebop.core.sampling import Sampling, distribution
from bebop.engines.base import Completion, DraftStats, Request, StopReason, TokenSource
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.vllm import VllmEngine, VllmOptions
from bebop.errors import UserError
from bebop.models.names import resolve_name
from bebop.models.policy import Policy, load_policy
from bebop.tasks.base import Split
from bebop.tasks.chat import chat_of
from bebop.tasks.registry import load_task

pytestmark = pytest.mark.vllm

K = 3
FORMATS = {"mimo": Format.MIMO, "llama": Format.EAGLE}
FLOAT32, BFLOAT16 = 1e-4, 0.1
Open = Callable[..., VllmEngine]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a policy by its kind: a built-in one, or a small one with a head that echoes it."""
    root = tmp_path_factory.mktemp("policies")

    def of(kind: str) -> Path:
        if kind.startswith("tiny"):
            return resolve_name(kind)
        if not (root / kind).exists():
            write_policy(PolicyRecipe(format=FORMATS[kind], draft=DraftKind.ECHO, vocabulary=16), root / kind)
        return root / kind

    return of


@pytest.fixture(scope="module")
def opened(directory: Callable[[str], Path]) -> Iterator[Open]:
    """Engines, opened once for each policy and its options."""
    engines: dict[tuple, VllmEngine] = {}

    def get(kind: str, **options: object) -> VllmEngine:
        key = (kind, *sorted(options.items()))
        if key not in engines:
            chosen = {"num_draft_tokens": K, "max_rows": 8, "cache_bytes": 1 << 28, "max_context": 192} | options
            engines[key] = VllmEngine(directory(kind), VllmOptions(**chosen))  # type: ignore[arg-type]
        return engines[key]

    yield get
    for engine in engines.values():
        engine.close()


def embedded(path: Path, k: int = K) -> EmbeddedEngine:
    return EmbeddedEngine(load_policy(path, dtype=torch.float32), EmbeddedOptions(num_draft_tokens=k, max_rows=8))


def requests_for(kind: str, count: int = 6, max_tokens: int = 40, **settings: object) -> list[Request]:
    prompts = task_prompts(kind, count) if kind == "tiny" else random_prompts((3, 7, 1, 12, 5, 9)[:count])
    return [
        Request(id=str(place), prompt_tokens=prompt, max_tokens=max_tokens, **settings)  # type: ignore[arg-type]
        for place, prompt in enumerate(prompts)
    ]


def task_prompts(kind: str, count: int) -> list[tuple[int, ...]]:
    chat = chat_of(load_policy(kind).tokenizer)
    task = load_task("math")
    return [tuple(chat.open(task.problem(Split.HELDOUT, i).messages)) for i in range(count)]


def same_until_a_tie(ours: Completion, theirs: Completion, tolerance: float) -> int:
    """Tokens both engines agree on; at the first other one, its log-prob is as good as the same."""
    for place, (mine, other) in enumerate(zip(ours.tokens, theirs.tokens, strict=True)):
        assert abs(ours.raw_logprobs[place] - theirs.raw_logprobs[place]) < tolerance, f"token {place}"
        if mine != other:
            return place
    return len(ours.tokens)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("mimo", FLOAT32), ("tiny", FLOAT32), ("llama", FLOAT32), ("tiny-hybrid", BFLOAT16)]
)
def test_greedy_tokens_and_log_probs_agree(kind: str, tolerance: float, opened: Open, directory: Callable) -> None:
    requests = requests_for(kind, sampling=GREEDY)
    theirs = opened(kind).generate(requests)
    ours = embedded(directory(kind)).generate(requests)
    agreed = [same_until_a_tie(one, other, tolerance) for one, other in zip(ours, theirs, strict=True)]
    total = sum(len(one.tokens) for one in ours)
    assert sum(agreed) == total if tolerance == FLOAT32 else sum(agreed) > 0.5 * total
    assert all(one.stop_reason is other.stop_reason for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["mimo", "tiny", "llama"])
def test_greedy_acceptance_agrees_within_sampling_error(kind: str, opened: Open, directory: Callable) -> None:
    requests = requests_for(kind, max_tokens=90, sampling=GREEDY)
    theirs = total(opened(kind).generate(requests))
    ours = total(embedded(directory(kind)).generate(requests))
    assert theirs.num_accepted > 0
    for depth in range(K):
        reached = (ours.reached[depth], theirs.reached[depth])
        if min(reached) < 20:
            continue
        mine, other = ours.accepted[depth] / reached[0], theirs.accepted[depth] / reached[1]
        pooled = (ours.accepted[depth] + theirs.accepted[depth]) / sum(reached)
        error = math.sqrt(pooled * (1 - pooled) * (1 / reached[0] + 1 / reached[1]))
        assert abs(mine - other) <= 4 * error, f"depth {depth + 1}"


def total(completions: list[Completion]) -> DraftStats:
    return sum((done.drafts for done in completions), DraftStats())


def test_vllms_counters_are_the_sum_of_the_completions(opened: Open) -> None:
    engine = opened("llama")
    before = engine.drafts()
    done = total(engine.generate(requests_for("llama", max_tokens=30)))
    after = engine.drafts()
    for name in ("rounds", "num_drafted", "num_accepted"):
        assert getattr(after, name) - getattr(before, name) == getattr(done, name), name


@pytest.mark.parametrize("kind", ["mimo", "llama"])
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.6), Sampling(temperature=1.3, top_k=5), Sampling(top_p=0.7)]
)
def test_behaviour_log_probs_are_those_of_the_sampling_distribution(
    kind: str, sampling: Sampling, opened: Open, directory: Callable
) -> None:
    """Also the guard of the correction: without it vLLM's CPU build samples from other settings than asked."""
    policy = load_policy(directory(kind), dtype=torch.float32)
    for done, request in zip_requests(opened(kind), requests_for(kind, sampling=sampling)):
        probs_TV = sampling_probs(policy, request, done)
        picked = probs_TV.gather(1, torch.tensor(done.tokens)[:, None])[:, 0]
        assert torch.allclose(picked.log(), torch.tensor(done.logprobs), atol=FLOAT32)
        assert math.isnan(done.entropies[0])


def zip_requests(engine: VllmEngine, requests: list[Request]) -> Iterator[tuple[Completion, Request]]:
    return zip(engine.generate(requests), requests, strict=True)


def sampling_probs(policy: Policy, request: Request, done: Completion) -> Tensor:
    """[T, V] the distribution at each emitted token, by one forward."""
    logits = full_logits(policy, request.prompt_tokens + done.tokens[:-1])[len(request.prompt_tokens) - 1 :]
    return distribution(logits, request.sampling)


def test_recorded_distributions_give_entropies_and_raw_log_probs(opened: Open, directory: Callable) -> None:
    policy = load_policy(directory("llama"), dtype=torch.float32)
    sampling = Sampling(temperature=0.7)
    engine = opened("llama", record_distribution=True)
    for done, request in zip_requests(engine, requests_for("llama", sampling=sampling)):
        probs_TV = sampling_probs(policy, request, done)
        entropies = -(probs_TV * probs_TV.log()).sum(1)
        assert torch.allclose(entropies, torch.tensor(done.entropies), atol=FLOAT32)
        raw = sampling_probs(policy, replace(request, sampling=Sampling()), done).log()
        picked = raw.gather(1, torch.tensor(done.tokens)[:, None])[:, 0]
        assert torch.allclose(picked, torch.tensor(done.raw_logprobs), atol=FLOAT32)


def test_without_drafts_tokens_are_sampled_one_by_one(opened: Open) -> None:
    done = opened("llama", num_draft_tokens=0).generate(requests_for("llama", sampling=GREEDY))
    drafted = opened("llama").generate(requests_for("llama", sampling=GREEDY))
    assert [one.tokens for one in done] == [one.tokens for one in drafted]
    assert {source for one in done for source in one.sources} == {TokenSource.SAMPLED}


def test_stops_end_a_completion_inside_a_block(opened: Open) -> None:
    engine = opened("tiny")
    whole = engine.generate(requests_for("tiny", count=1, sampling=GREEDY))[0]
    place = whole.sources.index(TokenSource.DRAFTED)
    token = whole.tokens[place]
    stopped = engine.generate(requests_for("tiny", count=1, sampling=GREEDY, stop_token_ids=(token,)))[0]
    assert stopped.tokens == whole.tokens[: whole.tokens.index(token) + 1]
    assert stopped.stop_reason is StopReason.STOP_TOKEN
    tokenizer = load_policy("tiny").tokenizer
    assert tokenizer is not None
    text = str(tokenizer.decode(list(whole.tokens)))
    cut = engine.generate(requests_for("tiny", count=1, sampling=GREEDY, stop_strings=(text[3:6],)))[0]
    assert cut.stop_reason is StopReason.STOP_STRING
    assert text[3:6] in str(tokenizer.decode(list(cut.tokens)))
    assert text[3:6] not in str(tokenizer.decode(list(cut.tokens[:-1])))


def test_the_context_is_an_end(opened: Open) -> None:
    done = opened("llama", max_context=32).generate(requests_for("llama", count=2, max_tokens=100))
    for one, length in zip(done, (3, 7), strict=True):
        assert (one.stop_reason, len(one.tokens)) == (StopReason.CONTEXT, 32 - length)


def changed(policy: Policy, *, head: bool) -> dict[str, Tensor]:
    """New weights for a policy, which it takes itself."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in policy.backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for parameter in policy.head.parameters() if head and policy.head is not None else ():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    heads = policy.head.state_dict() if head and policy.head is not None else {}
    return dict(policy.backbone.state_dict()) | {f"head.{name}": tensor for name, tensor in heads.items()}


def rounding(backbone: PreTrainedModel, requests: list[Request], done: list[Completion]) -> float:
    """The most that a log-prob of these tokens moves when the backbone itself computes in bfloat16, nats."""
    low = copy.deepcopy(backbone).to(torch.bfloat16)
    return max(
        (token_logprobs(backbone, request, one) - token_logprobs(low, request, one)).abs().max().item()
        for request, one in zip(requests, done, strict=True)
    )


@torch.inference_mode()
def token_logprobs(backbone: PreTrainedModel, request: Request, done: Completion) -> Tensor:
    tokens = torch.tensor([*request.prompt_tokens, *done.tokens])
    logits = backbone(tokens[None, :-1], use_cache=False).logits[0, -len(done.tokens) :].float()
    return logits.log_softmax(-1).gather(-1, tokens[-len(done.tokens) :, None])[:, 0]


@pytest.mark.parametrize("kind", ["mimo", "tiny", "llama", "tiny-hybrid"])
def test_new_weights_arrive_and_the_head_stays_or_comes_along(kind: str, opened: Open, directory: Callable) -> None:
    engine = opened(kind, max_rows=4)
    dtype = torch.bfloat16 if kind == "tiny-hybrid" else torch.float32
    policy = load_policy(directory(kind), dtype=dtype)
    frozen = engine.fingerprint()
    assert frozen == policy.fingerprint
    engine.load_weights(1, changed(policy, head=False))
    assert engine.fingerprint() == policy.fingerprint
    assert engine.fingerprint().head == frozen.head
    engine.load_weights(2, changed(policy, head=True))
    assert engine.fingerprint() == policy.fingerprint
    assert engine.fingerprint().head != frozen.head
    requests = requests_for(kind, sampling=GREEDY)
    theirs = engine.generate(requests)
    reference = Policy(
        backbone=policy.backbone.float(), head=policy.head and policy.head.float(), contract=policy.contract
    )
    ours = EmbeddedEngine(reference, EmbeddedOptions(num_draft_tokens=K, max_rows=4)).generate(requests)
    tolerance = FLOAT32 if dtype == torch.float32 else 2 * rounding(reference.backbone, requests, theirs)
    assert all(same_until_a_tie(one, other, tolerance) > 0 for one, other in zip(ours, theirs, strict=True))
    assert {version for one in theirs for version in one.versions} == {2}


def test_weights_can_change_in_the_middle_of_completions(opened: Open, directory: Callable) -> None:
    engine = opened("llama", max_rows=2)
    policy = load_policy(directory("llama"), dtype=torch.float32)
    short, long = requests_for("llama", count=2, sampling=GREEDY)
    stream = engine.stream([replace(short, max_tokens=6), long])
    first = next(stream)
    engine.load_weights(5, changed(policy, head=True))
    second = next(stream)
    assert set(first.versions) == {0}
    assert set(second.versions) == {0, 5}
    turn = second.versions.index(5)
    assert second.sources[turn] is TokenSource.SAMPLED, "its keys are computed again"
    continued = replace(long, prompt_tokens=long.prompt_tokens + second.tokens[:turn], max_tokens=40 - turn)
    assert EmbeddedEngine(policy).generate([continued])[0].tokens == second.tokens[turn:]


def test_an_update_that_fails_half_way_stops_the_engine(
    opened: Open, directory: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened("llama", max_rows=3)
    policy = load_policy(directory("llama"), dtype=torch.float32)
    tensors = changed(policy, head=True)
    update = engine._vllm.update

    def fails(part: object, *, draft: bool) -> None:
        if draft:
            raise RuntimeError("the connection is gone")
        update(part, draft=False)

    with monkeypatch.context() as patched:
        patched.setattr(engine._vllm, "update", fails)
        with pytest.raises(RuntimeError):
            engine.load_weights(1, tensors)
    with pytest.raises(UserError, match="failed half-way"):
        engine.generate(requests_for("llama"))
    engine.load_weights(2, tensors)
    assert engine.generate(requests_for("llama"))[0].versions[0] == 2


def test_a_stream_takes_requests_only_when_rows_are_free(opened: Open) -> None:
    engine = opened("llama", max_rows=2)
    taken: list[str] = []

    def source() -> Iterator[Request | None]:
        for request in requests_for("llama", max_tokens=5):
            taken.append(request.id)
            yield request
            yield None

    stream = engine.stream(source())
    next(stream)
    assert len(taken) <= 3
    assert len(list(stream)) == 5
    assert not engine._running


def test_sleep_is_refused_where_vllm_ignores_it(opened: Open) -> None:
    with pytest.raises(UserError, match="ignores sleep"):
        opened("llama").sleep()
