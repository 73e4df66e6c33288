"""Muon orthogonalises what it should, treats the rest as Adam does, and its state survives a checkpoint."""

import pytest
import torch
from torch import nn

from bebop.training.checkpoint import Trained, load_latest, save_checkpoint
from bebop.training.muon import Muon, orthogonalised
from bebop.training.optimiser import OptimiserConfig, open_optimiser


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (20, 8)])
def test_singular_values_are_pushed_towards_one(shape, dtype):
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(-1, 1, shape[1]))
    result = orthogonalised(matrix, dtype)
    values = torch.linalg.svdvals(result)
    assert result.dtype == torch.float32
    assert values.min() > 0.3 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (result * (left @ right)).sum() / min(shape) > 0.8


def test_bfloat16_products_change_little():
    torch.manual_seed(0)
    matrix = torch.randn(64, 192)
    exact, rounded = (orthogonalised(matrix, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (exact - rounded).norm() < 0.03 * exact.norm()


def test_what_is_no_matrix_moves_as_with_adamw():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    muon = Muon([], [ours], lr=0.1, weight_decay=0.3)
    adamw = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(4):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs)


def test_embeddings_norms_and_lm_head_are_not_orthogonalised():
    shapes = {
        "model.embed_tokens.weight": (6, 4),
        "lm_head.weight": (6, 4),
        "norm.weight": (4,),
        "q_proj.weight": (4, 4),
    }
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    groups = open_optimiser(named.items(), OptimiserConfig(name="muon")).param_groups
    assert [[one is named["q_proj.weight"] for one in group["params"]] for group in groups] == [[True], [False] * 3]


def test_its_state_survives_a_checkpoint(tmp_path):
    def training(steps, resume):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        named = dict(model.named_parameters())
        trained = Trained(named, open_optimiser(named.items(), OptimiserConfig(name="muon", lr=0.05)))
        first = load_latest(tmp_path, trained) if resume else 0
        for step in range(first, steps):
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            model(inputs).square().mean().backward()
            trained.optimiser.step()
            trained.optimiser.zero_grad()
        save_checkpoint(tmp_path, steps, trained)
        return named

    whole = training(6, resume=False)
    training(3, resume=False)
    resumed = training(6, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
