"""The norm's gradient is that of its formula."""

import torch

from bebop.core.norm import rms_norm

EPS = 1e-2


def formula(x, scale, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale


def test_value_and_gradient_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    scale = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(rms_norm(x, scale, EPS, x.dtype), formula(x, scale, EPS))
    assert torch.autograd.gradcheck(lambda *both: rms_norm(*both, EPS, torch.float64), (x, scale))


def test_a_row_of_zeros_has_a_finite_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), EPS, x.dtype).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 4), EPS**-0.5))


def test_half_precision_is_computed_in_float32():
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    scale = torch.linspace(0.5, 2.0, 48)
    found = rms_norm(x, scale, 1e-6, torch.bfloat16)
    assert torch.equal(found, formula(x.float(), scale, 1e-6).bfloat16())
