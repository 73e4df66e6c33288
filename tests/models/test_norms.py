"""Quick norms are the modules' own, and only for as long as they are wanted."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

from bebop.models.norms import quick_norms

SIZE = 24


def norm_of(kind):
    norm = kind(SIZE, eps=1e-5)
    with torch.no_grad():
        norm.weight.add_(torch.linspace(-0.5, 0.5, SIZE))
    return norm


def outcome(norm, x, weights):
    """Value, and gradients of some function of it."""
    x = x.clone().requires_grad_()
    value = norm(x)
    return value.detach(), *torch.autograd.grad((value * weights).sum(), (x, norm.weight))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, Qwen3_5RMSNorm])
def test_values_and_gradients_are_the_modules(kind):
    norm = norm_of(kind)
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(3, 7, SIZE, generator=generator) for _ in range(2))
    expected = outcome(norm, x, weights)
    with quick_norms(norm):
        assert "forward" in vars(norm)
        found = outcome(norm, x, weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_under_autocast_a_norm_gives_what_products_would_cast_it_to():
    norm = norm_of(Qwen3_5RMSNorm)
    x = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), quick_norms(norm):
        found = norm(x)
    assert torch.equal(found, norm(x).bfloat16())


def test_a_model_is_as_before_afterwards_also_when_it_fails():
    model = torch.nn.Sequential(norm_of(LlamaRMSNorm), torch.nn.Linear(SIZE, SIZE))
    with pytest.raises(RuntimeError), quick_norms(model):
        model(torch.zeros(2, SIZE + 1))
    assert all("forward" not in vars(module) for module in model.modules())
