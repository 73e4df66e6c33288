"""Causal attention has the gradient of float64 autograd, in the format in which it is computed otherwise too."""

import pytest
import torch
from torch import Tensor

from bebop.core import attention
from bebop.core.attention import causal_attention

SCALE = 0.3
SHAPES = [(2, 6, 2, 17, 16), (3, 3, 1, 40, 8), (1, 4, 4, 1, 8)]
"""B, Q, G, T, D."""


def heads(shape: tuple[int, int, int, int, int]) -> list[Tensor]:
    """Queries, keys, values, and the gradient of the output, all of numbers that bfloat16 has."""
    torch.manual_seed(0)
    rows, queries, keys, positions, size = shape
    counts = (queries, keys, keys, queries)
    return [torch.randn(rows, count, positions, size).bfloat16() for count in counts]


def plain(query_BQTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor) -> Tensor:
    per_key = query_BQTD.shape[1] // key_BGTD.shape[1]
    key_BQTD, value_BQTD = (one.repeat_interleave(per_key, dim=1) for one in (key_BGTD, value_BGTD))
    scores = query_BQTD @ key_BQTD.mT * SCALE
    places_T = torch.arange(scores.shape[-1])
    later = places_T > places_T[:, None]
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ value_BQTD


def value_and_gradients(attend, parts: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [one.detach().to(dtype).requires_grad_() for one in parts[:3]]
    out = attend(*leaves)
    out.backward(parts[3].to(out.dtype))
    return [out.detach().double(), *(one.grad.double() for one in leaves if one.grad is not None)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "kept_bytes"),
    [(torch.float32, 1e-5, 0), (torch.bfloat16, 0.02, 0), (torch.bfloat16, 0.02, 1e9)],
)
def test_value_and_gradient(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, tolerance: float, kept_bytes: float, monkeypatch
) -> None:
    """With probabilities that are kept for the gradient and with such as are computed again."""
    monkeypatch.setattr(attention, "KEPT_BYTES", kept_bytes)
    parts = heads(shape)
    wanted = value_and_gradients(plain, parts, torch.float64)
    found = value_and_gradients(lambda *one: causal_attention(*one, SCALE), parts, dtype)
    assert len(found) == 4
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("kept_bytes", [0, 1e9])
@pytest.mark.parametrize("mutant", ["_probabilities_see_the_future", "_forgets_the_mean"])
def test_the_comparison_sees_a_mutant(mutant: str, kept_bytes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutant == "_forgets_the_mean":
        monkeypatch.setattr(Tensor, "sub_", lambda one, _: one)
    else:
        monkeypatch.setattr(Tensor, "triu_", lambda one, _: one.zero_())
    with pytest.raises(AssertionError):
        test_value_and_gradient(SHAPES[0], torch.bfloat16, 0.02, kept_bytes, monkeypatch)


def test_products_are_for_bfloat16_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention._GradientByProducts, "apply", lambda *_: pytest.fail("explicit products"))
    causal_attention(*(one.float() for one in heads(SHAPES[0])[:3]), SCALE)


def test_autocast_decides_the_format() -> None:
    parts = [one.float() for one in heads(SHAPES[0])]
    with torch.autocast("cpu", torch.bfloat16):
        assert causal_attention(*parts[:3], SCALE).dtype == torch.bfloat16
    assert causal_attention(*parts[:3], SCALE).dtype == torch.float32
