"""The eager objectives against hand calculations, enumeration and the gradients of the specification's table.

Shapes: N chains, K depths, V vocabulary.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bebop.core.objectives import OBJECTIVES, lk_lambda_of
from bebop.core.statistics import DraftStatistics, draft_statistics

NUM_CHAINS, NUM_DEPTHS, VOCABULARY = 5, 3, 11


@pytest.fixture
def problem():
    rng = torch.Generator().manual_seed(7)
    target_NKV = 2 * torch.randn(NUM_CHAINS, NUM_DEPTHS, VOCABULARY, generator=rng, dtype=torch.float64)
    draft_NKV = target_NKV + torch.randn(target_NKV.shape, generator=rng, dtype=torch.float64)
    tokens_NK = torch.randint(VOCABULARY, (NUM_CHAINS, NUM_DEPTHS), generator=rng)
    return target_NKV, draft_NKV.requires_grad_(), tokens_NK


def gradient_of(name, target_NKV, draft_NKV, tokens_NK):
    loss_N = OBJECTIVES[name](target_NKV, draft_NKV, tokens_NK)
    return torch.autograd.grad(loss_N.sum(), draft_NKV)[0]


def tv_gradient(p_NKV, q_NKV):
    below_NKV = (q_NKV <= p_NKV).double()
    return -q_NKV * (below_NKV - (below_NKV * q_NKV).sum(-1, keepdim=True))


def test_table_of_values_on_a_case_done_by_hand():
    # p = (1/3, 2/3), q = (2/3, 1/3), token 1 at both depths: alpha = 2/3, q(y) = 1/3, p(y) = 2/3.
    third = 1 / 3
    target_NKV = torch.tensor([third, 2 * third], dtype=torch.float64).log().expand(1, 2, 2)
    draft_NKV = target_NKV.flip(-1)
    tokens_NK = torch.ones(1, 2, dtype=torch.long)
    kl = third * math.log(2)
    expected = {
        "ce": math.log(3),
        "kl": kl,
        "reverse_kl": kl,
        "tv": third,
        "e2e_tv": (third + (1 - 4 / 9)) / 2,
        "e2e_tv_path": (third + (1 - third)) / 2,
        "e2e_block": ((1 - 1 / 2) + (1 - 1 / 4)) / 2,
        "lk_alpha": -math.log(2 * third),
        "lk_lambda": math.exp(-2) * kl + (1 - math.exp(-2)) * third,
        "ce_tv": 0.1 * math.log(3) + 0.9 * third,
    }
    assert expected.keys() == OBJECTIVES.keys()
    for name, value in expected.items():
        assert OBJECTIVES[name](target_NKV, draft_NKV, tokens_NK).item() == pytest.approx(value, abs=1e-12), name


def test_logit_gradients_are_those_of_the_table(problem):
    target_NKV, draft_NKV, tokens_NK = problem
    p_NKV, q_NKV = target_NKV.softmax(-1), draft_NKV.detach().softmax(-1)
    onehot_NKV = torch.nn.functional.one_hot(tokens_NK, VOCABULARY).double()
    log_ratio_NKV = q_NKV.log() - p_NKV.log()
    reverse_NK1 = (q_NKV * log_ratio_NKV).sum(-1, keepdim=True)
    alpha_NK1 = torch.minimum(p_NKV, q_NKV).sum(-1, keepdim=True)
    expected = {
        "ce": q_NKV - onehot_NKV,
        "kl": q_NKV - p_NKV,
        "reverse_kl": q_NKV * (log_ratio_NKV - reverse_NK1),
        "tv": tv_gradient(p_NKV, q_NKV),
        "lk_alpha": tv_gradient(p_NKV, q_NKV) / alpha_NK1,
        "ce_tv": 0.1 * (q_NKV - onehot_NKV) + 0.9 * tv_gradient(p_NKV, q_NKV),
    }
    for name, gradient_NKV in expected.items():
        torch.testing.assert_close(gradient_of(name, *problem) * NUM_DEPTHS, gradient_NKV, msg=name)


def test_norm_of_the_tv_gradient_is_two_s_times_one_minus_s(problem):
    target_NKV, draft_NKV, _ = problem
    p_NKV, q_NKV = target_NKV.softmax(-1), draft_NKV.detach().softmax(-1)
    below_NK = torch.where(q_NKV <= p_NKV, q_NKV, 0.0).sum(-1)
    norm_NK = gradient_of("tv", *problem).mul(NUM_DEPTHS).abs().sum(-1)
    torch.testing.assert_close(norm_NK, 2 * below_NK * (1 - below_NK))
    assert (norm_NK <= 2 * torch.minimum(p_NKV, q_NKV).sum(-1)).all()


def test_a_tie_belongs_to_the_draft_in_full():
    # Tokens 0 and 1 tie at 1/4; S = 1/2, so their gradient is -1/4 (1 - 1/2). Half gradients would give 0 there.
    never = -1e4
    target_NKV = torch.tensor([[[0.0, 0, 0, 0, never, never]]], dtype=torch.float64)
    draft_NKV = torch.tensor([[[0.0, 0, never, never, 0, 0]]], dtype=torch.float64, requires_grad=True)
    gradient_V = gradient_of("tv", target_NKV, draft_NKV, torch.zeros(1, 1, dtype=torch.long))[0, 0]
    torch.testing.assert_close(gradient_V, torch.tensor([-0.125, -0.125, 0, 0, 0.125, 0.125], dtype=torch.float64))


@pytest.mark.parametrize("dead_depth", [None, 0, 1, 2])
def test_e2e_factor_even_where_an_overlap_is_zero(problem, dead_depth):
    target_NKV, draft_NKV, tokens_NK = (problem[0].clone(), problem[1].detach().clone(), problem[2])
    if dead_depth is not None:
        target_NKV[:, dead_depth], draft_NKV[:, dead_depth] = -1e4, -1e4
        target_NKV[:, dead_depth, 0], draft_NKV[:, dead_depth, 1] = 0, 0
    p_NKV, q_NKV = target_NKV.softmax(-1), draft_NKV.softmax(-1)
    alpha_NK = torch.minimum(p_NKV, q_NKV).sum(-1)
    factor_NK = torch.zeros_like(alpha_NK)
    for i in range(NUM_DEPTHS):
        for j in range(i, NUM_DEPTHS):
            others = [m for m in range(j + 1) if m != i]
            factor_NK[:, i] += alpha_NK[:, others].prod(-1) / NUM_DEPTHS
    expected_NKV = tv_gradient(p_NKV, q_NKV) * factor_NK[..., None]
    found_NKV = gradient_of("e2e_tv", target_NKV, draft_NKV.requires_grad_(), tokens_NK)
    torch.testing.assert_close(found_NKV, expected_NKV)
    if dead_depth is not None:
        assert (alpha_NK[:, dead_depth] == 0).all()
        assert found_NKV[:, :dead_depth].abs().sum() > 0 or dead_depth == 0


class Tree:
    """Laws p and q at every prefix of a vocabulary of 3 and 3 depths: small enough to enumerate."""

    size, depths = 3, 3

    def __init__(self, seed: int):
        rng = torch.Generator().manual_seed(seed)
        prefixes = [y for k in range(self.depths) for y in itertools.product(range(self.size), repeat=k)]
        self.p = {y: (1.5 * torch.randn(self.size, generator=rng, dtype=torch.float64)).softmax(0) for y in prefixes}
        self.q = {y: (1.5 * torch.randn(self.size, generator=rng, dtype=torch.float64)).softmax(0) for y in prefixes}

    def paths(self):
        return itertools.product(range(self.size), repeat=self.depths)

    def probability(self, law, path):
        return math.prod(law[path[:k]][path[k]].item() for k in range(len(path)))

    def expected_loss(self, name):
        """E over y ~ p of the objective on teacher-forced logits."""
        paths = list(self.paths())
        target_NKV = torch.stack([torch.stack([self.p[y[:k]] for k in range(self.depths)]) for y in paths]).log()
        draft_NKV = torch.stack([torch.stack([self.q[y[:k]] for k in range(self.depths)]) for y in paths]).log()
        weight_N = torch.tensor([self.probability(self.p, y) for y in paths], dtype=torch.float64)
        return (weight_N * OBJECTIVES[name](target_NKV, draft_NKV, torch.tensor(paths))).sum().item()

    def accepted_by_rejection(self):
        """sum_k sum_{y_1..y_k} prod_i min(p_i, q_i)."""
        return sum(
            math.prod(min(self.p[y[:i]][y[i]].item(), self.q[y[:i]][y[i]].item()) for i in range(k))
            for k in range(1, self.depths + 1)
            for y in itertools.product(range(self.size), repeat=k)
        )

    def accepted_by_block(self):
        """The algorithm itself (arXiv 2403.10444): y ~ q, accepted length = largest i with u_i <= h_i."""
        total = 0.0
        for y in self.paths():
            ratio, chances = 1.0, []
            for i in range(1, self.depths + 1):
                ratio = min(ratio * self.p[y[: i - 1]][y[i - 1]].item() / self.q[y[: i - 1]][y[i - 1]].item(), 1.0)
                if i == self.depths:
                    chances.append(ratio)
                else:
                    left = (ratio * self.p[y[:i]] - self.q[y[:i]]).clamp(min=0).sum().item()
                    chances.append(left / (left + 1 - ratio))
            at_least = [1 - math.prod(1 - h for h in chances[i:]) for i in range(self.depths)]
            total += self.probability(self.q, y) * sum(at_least)
        return total


@pytest.mark.parametrize("seed", range(3))
def test_path_objective_is_the_true_expectation_of_rejection(seed):
    tree = Tree(seed)
    assert tree.depths * (1 - tree.expected_loss("e2e_tv_path")) == pytest.approx(
        tree.accepted_by_rejection(), abs=1e-12
    )
    # The paper's product is a surrogate: it is not that expectation.
    assert abs(tree.depths * (1 - tree.expected_loss("e2e_tv")) - tree.accepted_by_rejection()) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_block_objective_is_the_true_expectation_of_block_verification(seed):
    tree = Tree(seed)
    assert tree.depths * (1 - tree.expected_loss("e2e_block")) == pytest.approx(tree.accepted_by_block(), abs=1e-12)
    assert tree.accepted_by_block() > tree.accepted_by_rejection() + 1e-4


def test_a_perfect_draft_costs_nothing_and_moves_nothing(problem):
    target_NKV, _, tokens_NK = problem
    draft_NKV = target_NKV.clone().requires_grad_()
    for name in OBJECTIVES.keys() - {"ce", "ce_tv"}:
        assert OBJECTIVES[name](target_NKV, draft_NKV, tokens_NK).abs().max() < 1e-12, name
    for name in ("kl", "reverse_kl", "tv", "e2e_tv", "lk_alpha", "lk_lambda"):
        assert gradient_of(name, target_NKV, draft_NKV, tokens_NK).abs().max() < 1e-12, name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_target_gets_no_gradient(problem, name):
    target_NKV, draft_NKV, tokens_NK = problem
    target_NKV.requires_grad_()
    OBJECTIVES[name](target_NKV, draft_NKV, tokens_NK).sum().backward()
    assert target_NKV.grad is None
    assert draft_NKV.grad.abs().sum() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_masked_tail_counts_zero_and_is_inert(problem, name):
    target_NKV, draft_NKV, tokens_NK = problem
    # The middle depth is masked, so the last is not reached either.
    mask_NK = torch.tensor([True, False, True]).expand(NUM_CHAINS, NUM_DEPTHS)
    loss_N = OBJECTIVES[name](target_NKV, draft_NKV, tokens_NK, depth_mask_NK=mask_NK)
    (gradient_NKV,) = torch.autograd.grad(loss_N.sum(), draft_NKV)
    assert (gradient_NKV[:, 1:] == 0).all()
    changed_NKV = torch.cat([draft_NKV[:, :1], 100 * torch.ones_like(draft_NKV[:, 1:])], 1)
    torch.testing.assert_close(OBJECTIVES[name](target_NKV, changed_NKV, tokens_NK, depth_mask_NK=mask_NK), loss_N)
    first_N = OBJECTIVES[name](target_NKV[:, :1], draft_NKV[:, :1], tokens_NK[:, :1])
    depth_1_share = 1 / (1 + 0.8 + 0.64) if name == "lk_lambda" else 1 / 3
    torch.testing.assert_close(loss_N, first_N * depth_1_share)


def test_a_fully_masked_batch_is_zero(problem):
    nothing_NK = torch.zeros(NUM_CHAINS, NUM_DEPTHS, dtype=torch.bool)
    for objective in OBJECTIVES.values():
        assert (objective(*problem, depth_mask_NK=nothing_NK) == 0).all()


def test_lk_lambda_uses_the_mean_overlap_of_counted_rows_and_detaches_it(problem):
    target_NKV, draft_NKV, tokens_NK = problem
    mask_NK = torch.ones(NUM_CHAINS, NUM_DEPTHS, dtype=torch.bool)
    mask_NK[0, 2] = mask_NK[1, 1] = False
    counted_NK = mask_NK.int().cumprod(-1).bool()
    statistics = draft_statistics(*problem)
    overlap_NK, depths_K = statistics.overlap_NK.detach(), torch.tensor([1, 0.8, 0.64], dtype=torch.float64)
    lam_K = torch.exp(-3 * torch.stack([overlap_NK[counted_NK[:, k], k].mean() for k in range(NUM_DEPTHS)]))
    terms_NK = lam_K * statistics.kl_NK + (1 - lam_K) * (1 - statistics.overlap_NK)
    expected_N = (counted_NK * terms_NK * depths_K).sum(-1) / depths_K.sum()
    found_N = OBJECTIVES["lk_lambda"](target_NKV, draft_NKV, tokens_NK, depth_mask_NK=mask_NK)
    torch.testing.assert_close(found_N, expected_N)
    torch.testing.assert_close(
        torch.autograd.grad(found_N.sum(), draft_NKV)[0], torch.autograd.grad(expected_N.sum(), draft_NKV)[0]
    )
    assert lk_lambda_of(torch.zeros(1)).item() == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_disjoint_laws_stay_finite(name):
    target_NKV, draft_NKV = torch.full((2, 3, 6), -1e3), torch.full((2, 3, 6), -1e3)
    target_NKV[..., 0], draft_NKV[..., 1] = 0, 0
    draft_NKV.requires_grad_()
    loss_N = OBJECTIVES[name](target_NKV, draft_NKV, torch.zeros(2, 3, dtype=torch.long))
    assert loss_N.isfinite().all() and (loss_N > 0).all()
    assert torch.autograd.grad(loss_N.sum(), draft_NKV)[0].isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_truncated_laws_are_compared_on_their_support(problem, name):
    """Both laws cut to the same tokens equal the same laws over that smaller vocabulary."""
    target_NKV, draft_NKV, tokens_NK = problem
    tokens_NK = tokens_NK % 6
    outside_V = torch.arange(VOCABULARY) >= 6
    cut_target_NKV = target_NKV.masked_fill(outside_V, -torch.inf)
    loss_N = OBJECTIVES[name](cut_target_NKV, draft_NKV.masked_fill(outside_V, -torch.inf), tokens_NK)
    small_N = OBJECTIVES[name](target_NKV[..., :6], draft_NKV[..., :6], tokens_NK)
    torch.testing.assert_close(loss_N, small_N)
    torch.testing.assert_close(
        torch.autograd.grad(loss_N.sum(), draft_NKV)[0], torch.autograd.grad(small_N.sum(), draft_NKV)[0]
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_logits_are_summed_in_float32(problem, name):
    target_NKV, draft_NKV, tokens_NK = problem
    half = (target_NKV.bfloat16(), draft_NKV.detach().bfloat16(), tokens_NK)
    wide = (half[0].double(), half[1].double(), tokens_NK)
    loss_N = OBJECTIVES[name](*half)
    assert loss_N.dtype == torch.float32
    torch.testing.assert_close(loss_N.double(), OBJECTIVES[name](*wide), rtol=1e-5, atol=1e-6)


def test_mistaken_shapes_are_named(problem):
    target_NKV, draft_NKV, tokens_NK = problem
    with pytest.raises(ValueError, match="one shape"):
        OBJECTIVES["tv"](target_NKV[:, :2], draft_NKV, tokens_NK)
    with pytest.raises(ValueError, match="tokens"):
        OBJECTIVES["tv"](target_NKV, draft_NKV, tokens_NK[:, :2])
    with pytest.raises(ValueError, match="depth mask"):
        OBJECTIVES["tv"](target_NKV, draft_NKV, tokens_NK, depth_mask_NK=tokens_NK[:, :2] > 0)
    with pytest.raises(ValueError, match="one shape"):
        DraftStatistics(
            draft_logprob_NK=torch.zeros(2, 3),
            target_logprob_NK=torch.zeros(2, 3),
            overlap_NK=torch.zeros(2, 1),
            kl_NK=torch.zeros(2, 3),
            reverse_kl_NK=torch.zeros(2, 3),
        )
