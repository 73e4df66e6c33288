"""Every rule is lossless, by exact enumeration in float64; every known way to get it wrong is seen to be biased."""

from collections.abc import Callable

import pytest
import torch
from exact_law import (
    ExactLaw,
    LeftoverAt,
    Tables,
    all_chains,
    along,
    chosen,
    enumerate_round,
    greedy_tables,
    joint_law,
    random_tables,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bebop.core.acceptance import (
    expected_accepted,
    expected_accepted_block,
    expected_accepted_rejection,
    overlap,
    target_only_acceptance,
)
from bebop.core.distributions import Dense, OneHot
from bebop.core.verify import (
    BLOCK,
    REJECTION,
    Chances,
    RatioRule,
    Round,
    block_chances,
    last_success,
    leading_run,
    leftover,
    leftover_at,
    rejection_chances,
)

TOLERANCE = 1e-12
RULES = {"rejection": REJECTION, "block": BLOCK}
SIZES = [(V, K) for V in (2, 3, 4) for K in (0, 1, 2, 3, 4)]


def models(V: int, K: int, seed: int = 0, zeros: float = 0.0) -> tuple[Tables, Tables]:
    generator = torch.Generator().manual_seed(seed)
    return random_tables(V, K + 1, generator, 1.5, zeros), random_tables(V, K, generator, 1.5, zeros)


def bias(law: ExactLaw, target: Tables) -> float:
    return float((law.joint - joint_law(target)).abs().max())


def on_policy(target: Tables, draft: Tables) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight [C] under the target, overlap [C, K], and both log-probs [C, K], of every chain."""
    V, K = target[0].shape[1], len(draft)
    chains_CK = all_chains(V, K)
    target_CK, draft_CK = chosen(target, chains_CK), chosen(draft, chains_CK)
    overlap_CK = overlap(along(target[:K], chains_CK), along(draft, chains_CK))
    return target_CK.prod(dim=1), overlap_CK, draft_CK.log(), target_CK.log()


def joint_bound(target: Tables, draft: Tables) -> float:
    return sum(
        float(torch.minimum(joint_law(target[:length]), joint_law(draft[:length])).sum())
        for length in range(1, len(draft) + 1)
    )


def expectation(weight_C: Tensor, value_C: Tensor) -> float:
    return float(torch.where(weight_C > 0, weight_C * value_C, 0).sum())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("V", "K"), SIZES)
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_ratio_rules_emit_the_targets_law(rule: RatioRule, V: int, K: int, zeros: float) -> None:
    target, draft = models(V, K, seed=V * 10 + K, zeros=zeros)
    assert bias(enumerate_round(rule, target, draft), target) < TOLERANCE


@pytest.mark.parametrize(("V", "K"), SIZES)
def test_target_only_emits_the_targets_law_and_accepts_what_its_formula_says(V: int, K: int) -> None:
    target, draft = models(V, K, seed=V + K)
    law = enumerate_round(REJECTION, target, greedy_tables(draft))
    assert bias(law, target) < TOLERANCE
    chains_CK = all_chains(V, K)
    draft_CKV, target_CKV = along(draft, chains_CK), along(target[:K], chains_CK)
    survival_CK = (draft_CKV.argmax(dim=-1) == chains_CK).double()
    formula_C = expected_accepted(target_only_acceptance(target_CKV, draft_CKV), survival_CK)
    weight_C = chosen(target, chains_CK).prod(dim=1)
    assert law.accepted == pytest.approx(expectation(weight_C, formula_C), abs=TOLERANCE)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("num_drafts", [0, 1, 2])
def test_padding_after_short_drafts_is_as_if_it_were_not_there(rule: RatioRule, num_drafts: int) -> None:
    target, draft = models(3, 3)
    short = enumerate_round(rule, target[: num_drafts + 1], draft[:num_drafts])
    padded = enumerate_round(rule, target, draft, num_drafts=num_drafts)
    assert bias(padded, target) < TOLERANCE
    assert padded.accepted == pytest.approx(short.accepted, abs=TOLERANCE)


@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize(("V", "K"), [size for size in SIZES if size[1] > 0])
def test_accepted_tokens_are_those_of_the_formulas_and_in_order(V: int, K: int, zeros: float) -> None:
    target, draft = models(V, K, seed=V * 100 + K, zeros=zeros)
    weight_C, overlap_CK, draft_CK, target_CK = on_policy(target, draft)
    by_rejection = enumerate_round(REJECTION, target, draft).accepted
    by_block = enumerate_round(BLOCK, target, draft).accepted
    formula_rejection = expectation(weight_C, expected_accepted_rejection(overlap_CK, draft_CK, target_CK))
    formula_block = expectation(weight_C, expected_accepted_block(draft_CK, target_CK))
    assert by_rejection == pytest.approx(formula_rejection, abs=TOLERANCE)
    assert by_block == pytest.approx(formula_block, abs=TOLERANCE)
    assert by_rejection <= by_block + TOLERANCE
    assert by_block <= joint_bound(target, draft) + TOLERANCE


def test_the_textbook_example_gives_ten_eleven_and_twelve_ninths() -> None:
    """Spec section 4: p = (1/3, 2/3), q = (2/3, 1/3) at both positions, K = 2."""
    target = [torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64).expand(2**d, 2) for d in range(3)]
    draft = [torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64).expand(2**d, 2) for d in range(2)]
    assert enumerate_round(REJECTION, target, draft).accepted == pytest.approx(10 / 9, abs=TOLERANCE)
    assert enumerate_round(BLOCK, target, draft).accepted == pytest.approx(11 / 9, abs=TOLERANCE)
    assert joint_bound(target, draft) == pytest.approx(12 / 9, abs=TOLERANCE)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    V=st.integers(2, 4),
    K=st.integers(1, 3),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
    name=st.sampled_from(sorted(RULES)),
)
def test_no_pair_of_models_breaks_a_rule(seed: int, V: int, K: int, sharpness: float, zeros: float, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = random_tables(V, K + 1, generator, sharpness, zeros)
    draft = random_tables(V, K, generator, sharpness)
    for proposal in (draft, target[:K], greedy_tables(draft)):
        assert bias(enumerate_round(RULES[name], target, proposal), target) < TOLERANCE


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_draft_equal_to_the_target_is_accepted_whole(rule: RatioRule) -> None:
    target, _ = models(3, 3)
    assert enumerate_round(rule, target, target[:3]).accepted == pytest.approx(3, abs=TOLERANCE)


def test_a_one_hot_that_is_never_written_out_is_the_one_that_is() -> None:
    chains_CK = all_chains(3, 2)
    target = Dense(along(models(3, 2)[0], chains_CK))
    dense = Dense(torch.nn.functional.one_hot(chains_CK, 3).float())
    num_drafts_C = torch.full((9,), 2)
    hot, written = (
        Round(draft_tokens_BK=chains_CK, draft=draft, target=target, num_drafts_B=num_drafts_C)
        for draft in (OneHot(chains_CK, 3), dense)
    )
    for chances in (rejection_chances, block_chances):
        torch.testing.assert_close(chances(hot).accept_BK, chances(written).accept_BK)
    for depth in (0, 1):
        torch.testing.assert_close(hot.draft.depth(depth), written.draft.depth(depth))
        torch.testing.assert_close(hot.draft.row(num_drafts_C - 2 + depth), written.draft.depth(depth))


def test_nothing_left_over_falls_back_to_the_target() -> None:
    law_BV = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    left_BV = leftover(law_BV, torch.tensor([[0.25, 0.75], [0.0, 1.0]]), torch.ones(2))
    torch.testing.assert_close(left_BV, torch.tensor([[0.25, 0.75], [0.5, 0.0]]))


# Mutants: each is a mistake that a released engine has made, and enumeration must see it.


def residual_from_target(round_: Round, chances: Chances, num_accepted_B: Tensor) -> Tensor:
    del chances
    return round_.target.row(num_accepted_B)


def bonus_one_too_low(round_: Round, chances: Chances, num_accepted_B: Tensor) -> Tensor:
    """The paper's Algorithm 3 as printed."""
    is_bonus_B1 = (num_accepted_B >= round_.num_drafts_B)[:, None]
    scale_B = chances.scale_BJ.gather(1, num_accepted_B[:, None]).squeeze(1)
    residual_BV = leftover(round_.target.row(num_accepted_B), round_.draft.row(num_accepted_B), scale_B)
    return torch.where(is_bonus_B1, round_.target.row(round_.num_drafts_B - 1), residual_BV)


def unscaled_residual(round_: Round, chances: Chances, num_accepted_B: Tensor) -> Tensor:
    is_bonus_B1 = (num_accepted_B >= round_.num_drafts_B)[:, None]
    draft_BV = round_.draft.row(num_accepted_B).masked_fill(is_bonus_B1, 0)
    return leftover(round_.target.row(num_accepted_B), draft_BV, torch.ones_like(chances.scale_BJ[:, 0]))


def token_wise_thresholds(round_: Round) -> Chances:
    """ "Block" verification that tests each token's own ratio and rescales the residual by the product."""
    return Chances(accept_BK=rejection_chances(round_).accept_BK, scale_BJ=block_chances(round_).scale_BJ)


def worst_bias(
    rule: RatioRule, leftover: LeftoverAt = leftover_at, distort: Callable[[Tables], Tables] | None = None
) -> float:
    """The largest bias in five models; `distort` makes what is drawn from out of the q that the rule is told."""
    biases = []
    for seed in range(5):
        target, draft = models(3, 2, seed)
        drawn_from = distort(draft) if distort else None
        biases.append(bias(enumerate_round(rule, target, draft, leftover=leftover, drawn_from=drawn_from), target))
    return max(biases)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("mutant", [residual_from_target, bonus_one_too_low])
def test_a_wrong_leftover_is_biased(rule: RatioRule, mutant: LeftoverAt) -> None:
    assert worst_bias(rule, mutant) > 0.01


@pytest.mark.parametrize(
    "mutant",
    [
        RatioRule(token_wise_thresholds, leading_run),
        RatioRule(token_wise_thresholds, last_success),
        RatioRule(rejection_chances, last_success),
        RatioRule(block_chances, leading_run),
    ],
    ids=["token-wise, leading run", "token-wise, last success", "rejection, last success", "block, leading run"],
)
def test_a_mixture_of_two_rules_is_biased(mutant: RatioRule) -> None:
    assert worst_bias(mutant) > 0.01


def test_block_with_rejections_residual_is_biased() -> None:
    assert worst_bias(BLOCK, unscaled_residual) > 0.01


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_draft_not_drawn_from_the_q_it_names_is_biased(rule: RatioRule) -> None:
    def sharper(tables: Tables) -> Tables:
        return [table**2 / (table**2).sum(dim=1, keepdim=True) for table in tables]

    assert worst_bias(rule, distort=sharper) > 0.01
