"""The law of whole completions, from the whole engine with its own random streams, against exact enumeration.

Heads are adversarial (the opposite of the backbone: nearly every draft is refused) or good (most blocks are accepted
whole), settings and K are mixed within a batch, and stop tokens cut blocks. Chi-square tests on the whole completion
(up to three tokens) and on the first two tokens; the mutants at the end must fail them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2
from small_policies import full_logits, run, small_policy, with_echo_head
from torch import Tensor

from bebop.core import verify
from bebop.core.sampling import Sampling, distribution, draw
from bebop.core.streams import Purpose, RoundStreams
from bebop.engines.base import Request, TokenSource
from bebop.engines.embedded import rules
from bebop.engines.embedded.draft_vocabulary import DraftVocabulary
from bebop.models.policy import Policy

VOCABULARY = 8
PROMPT = (3, 1, 4)
STOP = 3
MAX_TOKENS = 3
SETTINGS = (
    Sampling(temperature=0.3),
    Sampling(temperature=1.4),
    Sampling(top_k=4),
    Sampling(temperature=1.2, top_p=0.7),
    Sampling(min_p=0.2),
    Sampling(temperature=0.8, top_k=6, top_p=0.9, min_p=0.02),
    Sampling(temperature=0.0),
)
NUM_SAMPLES = 2000
"""Per setting, rule and head: 7 settings x 4 rules x 3 heads x 2000 = 168,000 completions."""
MANY_SAMPLES = 15_000
"""Of the slow tests: 105,000 completions for each rule and head."""
RULES = ("rejection", "block", "target_only", "coupled")

Tokens = tuple[int, ...]


def headed(head: str) -> Policy:
    """The policy under test with an ``opposite`` head, a ``good`` one, or a good one of ``few`` tokens."""
    policy = small_policy("single", vocabulary=VOCABULARY, seed=8, spread=0.25)
    policy = with_echo_head(policy, {"opposite": -1.0, "good": 1.0, "few": 1.0}[head])
    return replace(policy, draft_vocabulary=(0, 3, 6)) if head == "few" else policy


@pytest.fixture(scope="module", params=["opposite", "good", "few"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return headed(request.param)


@pytest.fixture(scope="module")
def laws() -> list[dict[Tokens, float]]:
    """Of each setting: every completion and its probability."""
    policy = headed("good")
    logits = {prefix: full_logits(policy, PROMPT + prefix)[-1] for prefix in prefixes()}
    return [dict(enumerate_law(logits, sampling)) for sampling in SETTINGS]


def prefixes() -> Iterator[Tokens]:
    yield ()
    yield from ((a,) for a in range(VOCABULARY))
    yield from ((a, b) for a in range(VOCABULARY) for b in range(VOCABULARY))


def enumerate_law(logits: dict[Tokens, Tensor], sampling: Sampling) -> Iterator[tuple[Tokens, float]]:
    """Completions end at the stop token or at the last place."""
    open_prefixes: list[tuple[Tokens, float]] = [((), 1.0)]
    while open_prefixes:
        prefix, mass = open_prefixes.pop()
        for token, probability in enumerate(distribution(logits[prefix].double(), sampling).tolist()):
            longer, joint = (*prefix, token), mass * probability
            if joint == 0:
                continue
            if token == STOP or len(longer) == MAX_TOKENS:
                yield longer, joint
            else:
                open_prefixes.append((longer, joint))


def p_value(counts: Counter[Tokens], law: dict[Tokens, float]) -> float:
    """Chi-square goodness of fit; the rarest outcomes share a cell that expects 5. 0 when the impossible was seen."""
    if any(outcome not in law for outcome in counts):
        return 0.0
    total = counts.total()
    cells: list[tuple[int, float]] = []
    seen, expected = 0, 0.0
    for outcome in sorted(law, key=law.__getitem__):
        seen, expected = seen + counts[outcome], expected + law[outcome] * total
        if expected >= 5:
            cells.append((seen, expected))
            seen, expected = 0, 0.0
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    return float(chi2.sf(statistic, len(cells) - 1)) if len(cells) > 1 else 1.0


def first_two(law: dict[Tokens, float]) -> dict[Tokens, float]:
    marginal: dict[Tokens, float] = {}
    for outcome, mass in law.items():
        marginal[outcome[:2]] = marginal.get(outcome[:2], 0.0) + mass
    return marginal


def worst_p_value(policy: Policy, laws: list[dict[Tokens, float]], rule: str, num_samples: int = NUM_SAMPLES) -> float:
    """The smallest p-value over settings and both tests; K is 1, 2, 3 and 5 in turn."""
    requests = [
        Request(
            id=str(i),
            prompt_tokens=PROMPT,
            max_tokens=MAX_TOKENS,
            sampling=sampling,
            seed=1000 + i,
            num_draft_tokens=(1, 2, 3, 5)[i % 4],
            stop_token_ids=(STOP,),
            num_completions=num_samples,
        )
        for i, sampling in enumerate(SETTINGS)
    ]
    counts = [Counter[Tokens]() for _ in SETTINGS]
    for done in run(policy, requests, rule=rule, max_rows=4096, num_draft_tokens=5):
        counts[int(done.request_id)][done.tokens] += 1
    both = ((counts, laws), ([first_two_counts(c) for c in counts], [first_two(law) for law in laws]))
    return min(p_value(c, law) for seen, wanted in both for c, law in zip(seen, wanted, strict=True))


def first_two_counts(counts: Counter[Tokens]) -> Counter[Tokens]:
    marginal = Counter[Tokens]()
    for outcome, count in counts.items():
        marginal[outcome[:2]] += count
    return marginal


@pytest.mark.parametrize("rule", RULES)
def test_completions_follow_the_policys_law(policy: Policy, laws: list[dict[Tokens, float]], rule: str) -> None:
    assert sum(laws[1].values()) == pytest.approx(1)
    assert worst_p_value(policy, laws, rule) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_many_completions_follow_the_policys_law(policy: Policy, laws: list[dict[Tokens, float]], rule: str) -> None:
    assert worst_p_value(policy, laws, rule, MANY_SAMPLES) > 1e-4


def test_the_good_head_reaches_the_bonus_and_the_opposite_one_the_leftover() -> None:
    """What the heads are for: without such rounds, the tests above would see neither."""
    sources = {}
    for head in ("good", "opposite"):
        many = Request(id="a", prompt_tokens=PROMPT, max_tokens=MAX_TOKENS, num_completions=500)
        done = run(headed(head), [many], rule="rejection", max_rows=500, num_draft_tokens=1)
        sources[head] = Counter(source for completion in done for source in completion.sources)
    assert sources["good"][TokenSource.BONUS] > 300
    assert sources["opposite"][TokenSource.CORRECTED] > 700


def shared_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft's uniform decides the leftover too."""
    original = RoundStreams.uniform

    def uniform(self: RoundStreams, purpose: Purpose, index_BX: Tensor) -> Tensor:
        return original(self, Purpose.DRAFT if purpose is Purpose.LEFTOVER else purpose, index_BX)

    monkeypatch.setattr(RoundStreams, "uniform", uniform)


def wrong_bonus_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token after a row's K accepted drafts is drawn from p_K, as the paper's Algorithm 3 is printed."""
    original = rules.RatioRule.judge

    def judge(self, drafts, target_bJV, streams):
        num_rows, num_drafts = drafts.tokens_bK.shape
        lengths_b = torch.full((num_rows,), num_drafts) if drafts.lengths_b is None else drafts.lengths_b
        rows_b, shifted_bJV = torch.arange(num_rows), target_bJV.clone()
        shifted_bJV[rows_b, lengths_b] = target_bJV[rows_b, (lengths_b - 1).clamp(min=0)]
        return original(self, drafts, shifted_bJV, streams)

    monkeypatch.setattr(rules.RatioRule, "judge", judge)


def residual_from_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rejection the whole of p is sampled, not p - q."""
    monkeypatch.setattr(verify, "leftover", lambda target_BV, draft_BV, scale_B: target_BV)


def another_draft_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are drawn from a sharper q than the one that verifies them."""

    monkeypatch.setattr(rules.RatioRule, "propose", lambda self, probs_bV, noise: draw(probs_bV**1.5, noise))


def reused_coins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round of a request tosses the same coins."""
    original = RoundStreams.uniform

    def uniform(self: RoundStreams, purpose: Purpose, index_BX: Tensor) -> Tensor:
        fixed = RoundStreams(seed_B=self.seed_B, position_B=torch.zeros_like(self.position_B))
        return original(fixed, purpose, index_BX)

    monkeypatch.setattr(RoundStreams, "uniform", uniform)


def shifted_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probabilities of a head that drafts few tokens are taken for those of their neighbours."""
    original = DraftVocabulary.spread
    monkeypatch.setattr(DraftVocabulary, "spread", lambda self, probs_bKS: original(self, probs_bKS).roll(1, dims=2))


@pytest.mark.parametrize(
    ("mutate", "head"),
    [
        (shared_noise, "opposite"),
        (wrong_bonus_index, "good"),
        (residual_from_target, "opposite"),
        (another_draft_law, "opposite"),
        (reused_coins, "opposite"),
        (shifted_vocabulary, "few"),
    ],
)
def test_mutants_are_seen(mutate, head: str, laws: list, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert worst_p_value(headed(head), laws, "rejection") < 1e-6
