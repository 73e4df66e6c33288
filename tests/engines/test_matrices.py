"""A Matrix is x W^T + b of its modules, in either layout, and follows every change of weights."""

import pytest
import torch
from torch import Tensor, nn

from bebop.engines.embedded import matrices
from bebop.engines.embedded.matrices import Matrix


@pytest.fixture(params=["transposed", "packed"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(matrices, "_MIN_PACKED", 0 if request.param == "packed" else 1 << 40)
    return request.param


def modules(biases: tuple[bool, ...]) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(24, 8 * (i + 1), bias=bias) for i, bias in enumerate(biases)]


def wanted(parts: list[nn.Linear], x_NI: Tensor) -> Tensor:
    return torch.cat([part.double()(x_NI.double()) for part in parts], dim=1).float()


@pytest.mark.parametrize("biases", [(False,), (True,), (False, True, False)])
@pytest.mark.parametrize("num_rows", [1, 3, 70])
def test_product_of_modules_side_by_side(layout: str, biases: tuple[bool, ...], num_rows: int) -> None:
    parts, x_NI = modules(biases), torch.randn(num_rows, 24)
    matrix = Matrix(*parts)
    with torch.inference_mode():
        found = matrix(x_NI)
        onto = matrix.onto(torch.ones_like(found), x_NI)
    expected = wanted(parts, x_NI).detach()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(onto, expected + 1)


def test_arranged_rows(layout: str) -> None:
    part, x_NI = modules((True,))[0], torch.randn(2, 24)
    matrix = Matrix(part, arrange=lambda tensors: tensors[0].flip(0))
    with torch.no_grad():
        torch.testing.assert_close(matrix(x_NI), part(x_NI).flip(1))


@torch.no_grad()
def test_changed_weights_are_taken_over_and_others_left_alone(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, x_NI = modules((True,))[0], torch.randn(2, 24)
    matrix = Matrix(part)
    before = matrix(x_NI)
    part.weight.mul_(2)
    assert torch.equal(matrix(x_NI), before), "the copy is one"
    matrix.refresh()
    torch.testing.assert_close(matrix(x_NI), part(x_NI))
    part.bias = nn.Parameter(torch.ones(8))
    matrix.refresh()
    torch.testing.assert_close(matrix(x_NI), part(x_NI))
    monkeypatch.setattr(matrices, "_transposed", pytest.fail)
    monkeypatch.setattr(matrices, "_can_pack", lambda _: False)
    matrix.refresh()


def test_weights_made_in_inference_mode_are_always_taken_over(layout: str) -> None:
    with torch.inference_mode():
        part, x_NI = modules((False,))[0], torch.randn(2, 24)
        matrix = Matrix(part)
        part.weight.mul_(2)
        matrix.refresh()
        torch.testing.assert_close(matrix(x_NI), part(x_NI))
