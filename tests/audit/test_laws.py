"""Exact laws and the policies they are of: enumeration against the plain model, and heads that draft as promised."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bebop.audit.checks.law import view_fits
from bebop.audit.checks.stops import likeliest_pair
from bebop.audit.exact import ExactPolicy, logprob_table
from bebop.audit.laws import PrefixLogits, ends_after, ends_with_text, enumerate_law, mixture
from bebop.audit.plan import PROMPTS
from bebop.audit.policies import DraftKind, Format, PolicyRecipe, build_policy, letter_tokenizer, write_policy
from bebop.core.sampling import Sampling, log_distribution
from bebop.engines.base import Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.models.policy import Policy, load_policy

PROMPT = PROMPTS[0]
SAMPLING = Sampling(temperature=0.8, top_k=6, top_p=0.9)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build_policy(PolicyRecipe())


@torch.no_grad()
def plain_logprob(policy: Policy, tokens: tuple[int, ...], sampling: Sampling) -> float:
    """Of a completion of PROMPT, by transformers' own forward."""
    logits = policy.backbone(input_ids=torch.tensor([PROMPT + tokens]), use_cache=False).logits[0].double()
    rows = log_distribution(logits[len(PROMPT) - 1 : -1], sampling)
    return float(rows.gather(1, torch.tensor(tokens)[:, None]).sum())


def test_a_law_is_the_product_of_the_models_conditionals(policy: Policy) -> None:
    law = enumerate_law(PrefixLogits(policy, PROMPT).law(SAMPLING), ends_after(3))
    assert sum(law.masses.values()) == pytest.approx(1)
    for tokens in itertools.islice(law.masses, 0, None, 23):
        assert torch.tensor(law.masses[tokens]).log() == pytest.approx(
            plain_logprob(policy, tokens, SAMPLING), abs=1e-5
        )


def test_stops_end_completions_where_they_stand(policy: Policy) -> None:
    conditional = PrefixLogits(policy, PROMPT).law(Sampling())
    by_token = enumerate_law(conditional, ends_after(3, (3, 6)))
    assert sum(by_token.masses.values()) == pytest.approx(1)
    assert all(3 not in tokens[:-1] and 6 not in tokens[:-1] for tokens in by_token.masses)
    by_text = enumerate_law(conditional, ends_with_text(3, (3, 6)))
    assert (3, 6) in by_text.masses and (3, 6, 0) not in by_text.masses and (6, 3, 6) in by_text.masses


def test_the_rare_is_lumped_and_nothing_is_lost(policy: Policy) -> None:
    conditional = PrefixLogits(policy, PROMPT).law(Sampling())
    whole, lumped = enumerate_law(conditional, ends_after(2)), enumerate_law(conditional, ends_after(2), floor=0.02)
    assert whole.rest == 0 and 0.05 < lumped.rest < 0.95
    assert sum(lumped.masses.values()) + lumped.rest == pytest.approx(1)
    drawn = lumped.sample(4000, torch.Generator().manual_seed(0))
    assert view_fits("own", drawn, lumped, {"whole": lambda tokens: tokens})[0].p_value > 1e-3
    assert drawn.count(()) == pytest.approx(4000 * lumped.rest, abs=150)
    assert all(lumped.masses[tokens] == pytest.approx(whole.masses[tokens]) for tokens in lumped.masses)


def test_views_are_marginals(policy: Policy) -> None:
    conditional = PrefixLogits(policy, PROMPT).law(Sampling())
    second = enumerate_law(conditional, ends_after(3)).project(lambda tokens: tokens[:2])
    assert second.masses == pytest.approx(enumerate_law(conditional, ends_after(2)).masses)


def test_a_mixture_is_between_its_parts(policy: Policy) -> None:
    target, draft = (PrefixLogits(policy, PROMPT, from_head=head).law(Sampling()) for head in (False, True))
    mixed = mixture(target, draft, 0.25)([(), (1,)])
    assert torch.allclose(mixed, 0.75 * target([(), (1,)]) + 0.25 * draft([(), (1,)]))


def test_the_table_holds_what_occurs(policy: Policy) -> None:
    conditional = PrefixLogits(policy, PROMPT).law(SAMPLING)
    table = logprob_table(conditional, [(1, 2), (1, 5)])
    assert set(table) == {((), 1), ((1,), 2), ((1,), 5)}
    assert table[(), 1] + table[(1,), 2] == pytest.approx(plain_logprob(policy, (1, 2), SAMPLING), abs=1e-5)


@pytest.mark.parametrize("format", list(Format))
def test_policies_come_back_from_disk_as_they_were(format: Format, tmp_path: Path) -> None:
    recipe = PolicyRecipe(format=format, vocabulary=9, seed=3)
    written = write_policy(recipe, tmp_path / "policy")
    assert load_policy(tmp_path / "policy").fingerprint == written.fingerprint == build_policy(recipe).fingerprint
    assert load_policy(tmp_path / "policy").tokenizer.decode([3, 0, 8]) == "dai"  # type: ignore[union-attr]
    assert letter_tokenizer(9).encode("dai") == [3, 0, 8]


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("draft", list(DraftKind))
def test_the_head_drafts_what_enumeration_says(format: Format, draft: DraftKind) -> None:
    """The engine's draft log-probs, at every depth, against the head run plainly over prompt and prefix."""
    policy = build_policy(PolicyRecipe(format=format, draft=draft))
    request = Request(id="a", prompt_tokens=PROMPT, max_tokens=6, sampling=SAMPLING, num_completions=12)
    done = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3)).generate([request])
    law = PrefixLogits(policy, PROMPT, from_head=True).law(SAMPLING)
    checked = 0
    for one in done:
        for place, value in enumerate(one.draft_logprobs):
            if value is not None:
                wanted = float(law([one.tokens[:place]])[0, one.tokens[place]].log())
                assert value == pytest.approx(wanted, abs=1e-3)
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("format", list(Format))
def test_heads_are_good_bad_or_opposite(format: Format) -> None:
    overlaps = {
        draft: ExactPolicy(build_policy(PolicyRecipe(format=format, draft=draft)), 1).overlap(PROMPT)
        for draft in DraftKind
    }
    assert overlaps[DraftKind.OPPOSITE] < overlaps[DraftKind.UNIFORM] < overlaps[DraftKind.ECHO] + 0.1
    assert overlaps[DraftKind.ECHO] > 0.5 > overlaps[DraftKind.OPPOSITE]


@pytest.mark.parametrize("format", list(Format))
def test_a_head_left_behind_by_a_turned_backbone_drafts_the_opposite(format: Format) -> None:
    new = build_policy(PolicyRecipe(format=format, draft=DraftKind.ECHO, seed=1, turned=True))
    old = build_policy(PolicyRecipe(format=format, draft=DraftKind.ECHO))
    own, stale = (ExactPolicy(one, 1).overlap(PROMPT) for one in (new, replace(new, head=old.head)))
    assert stale < 0.7 * own


def test_the_likeliest_pair_is_of_two_different_tokens() -> None:
    first, after = (0.1, 0.3, 0.6), ((0.8, 0.1, 0.1), (0.9, 0.1, 0.0), (0.2, 0.1, 0.7))
    rows = torch.tensor([first, *after], dtype=torch.float64)
    assert likeliest_pair(lambda prefixes: rows[[prefix[0] + 1 if prefix else 0 for prefix in prefixes]]) == (1, 0)
