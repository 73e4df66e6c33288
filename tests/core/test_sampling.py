"""The one distribution: its order of steps, ties, mixed batches, and drawing from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bebop.core import sampling as sampling_module
from bebop.core.sampling import GREEDY, Sampling, distribution, draw, log_distribution, parse_sampling, stack_sampling

MIXED = [
    GREEDY,
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=3),
    Sampling(temperature=0.3, top_k=400),  # its tail is below the resolution of a sum of probabilities
    Sampling(top_p=0.8),
    Sampling(min_p=0.2),
    Sampling(temperature=1.4, top_k=50, top_p=0.9, min_p=0.05),
    Sampling(temperature=0.0, top_k=2, top_p=0.5, min_p=0.5),
]


def logits_of(probs: list[float]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def kept(logits_V: Tensor, sampling: Sampling) -> list[int]:
    return distribution(logits_V, sampling).nonzero().flatten().tolist()


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.4])
@pytest.mark.parametrize("top_k", [0, 1, 20, 5000])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_it_is_the_distribution_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits_NV = random_logits(4, 1000)
    scores_NV = TemperatureLogitsWarper(temperature)(None, logits_NV)  # type: ignore[arg-type]
    scores_NV = TopKLogitsWarper(top_k)(None, scores_NV) if top_k else scores_NV  # type: ignore[arg-type]
    scores_NV = TopPLogitsWarper(top_p)(None, scores_NV) if top_p < 1 else scores_NV  # type: ignore[arg-type]
    scores_NV = MinPLogitsWarper(min_p)(None, scores_NV) if min_p else scores_NV  # type: ignore[arg-type]
    ours_NV = distribution(logits_NV, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    torch.testing.assert_close(ours_NV, scores_NV.softmax(dim=-1), atol=1e-6, rtol=1e-5)
    assert torch.equal(ours_NV > 0, scores_NV.softmax(dim=-1) > 0)


def test_top_p_measures_mass_within_what_top_k_kept() -> None:
    logits_V = logits_of([0.4, 0.2, 0.2001, 0.1999])
    assert kept(logits_V, Sampling(top_p=0.65)) == [0, 1, 2]
    assert kept(logits_V, Sampling(top_k=2, top_p=0.65)) == [0]


def test_top_p_does_not_see_what_min_p_removes() -> None:
    logits_V = logits_of([0.5, 0.3, 0.11, 0.09])
    # With min-p first, [0.5, 0.3] would be all there is and 0.6 of it one token.
    assert kept(logits_V, Sampling(top_p=0.6, min_p=0.5)) == [0, 1]


def test_ties_at_a_threshold_are_all_kept() -> None:
    logits_V = logits_of([0.1, 0.3, 0.3, 0.3])
    assert kept(logits_V, Sampling(top_k=1)) == [1, 2, 3]
    assert kept(logits_V, Sampling(top_p=0.2)) == [1, 2, 3]
    assert kept(logits_V, Sampling(min_p=1.0)) == [1, 2, 3]
    assert kept(logits_V, GREEDY) == [1]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    logits_V = logits_of([0.5, 0.25, 0.125, 0.125])
    assert kept(logits_V, Sampling(top_p=0.5)) == [0]
    assert kept(logits_V, Sampling(top_p=0.500001)) == [0, 1]
    assert kept(logits_V, Sampling(top_p=1e-9)) == [0]


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [0, 3000])
def test_a_nucleus_of_any_size_is_that_of_a_full_sort(scale: float, top_k: int) -> None:
    logits_NV = random_logits(3, 9000, scale=scale).double()
    ours_NV = distribution(logits_NV, Sampling(top_p=0.95, top_k=top_k))
    scores_NV = TopKLogitsWarper(top_k)(None, logits_NV) if top_k else logits_NV  # type: ignore[arg-type]
    sorted_NV = scores_NV.softmax(dim=-1).sort(dim=-1, descending=True).values
    before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
    smallest_N1 = sorted_NV.masked_fill(before_NV >= 0.95, 2).amin(dim=-1, keepdim=True)
    assert torch.equal(ours_NV > 0, scores_NV.softmax(dim=-1) >= smallest_N1)


@pytest.mark.parametrize("middle", [(), (3,), (2, 3)])
def test_a_row_of_a_mixed_batch_is_that_row_alone(middle: tuple[int, ...]) -> None:
    logits_BXV = random_logits(len(MIXED), *middle, 600)
    table = stack_sampling(MIXED)
    probs_BXV, log_probs_BXV = distribution(logits_BXV, table), log_distribution(logits_BXV, table)
    for row, sampling in enumerate(MIXED):
        assert torch.equal(probs_BXV[row], distribution(logits_BXV[row], sampling))
        assert torch.equal(log_probs_BXV[row], log_distribution(logits_BXV[row], sampling))
    torch.testing.assert_close(log_probs_BXV.exp(), probs_BXV)


def test_greedy_is_a_one_hot_at_the_first_largest() -> None:
    probs_V = distribution(torch.tensor([1.0, 5.0, 5.0, -math.inf]), GREEDY)
    assert probs_V.tolist() == [0, 1, 0, 0]
    assert log_distribution(torch.tensor([1.0, 5.0, 5.0]), GREEDY).tolist() == [-math.inf, 0, -math.inf]


def test_a_nan_row_stays_nan_and_harms_no_other() -> None:
    logits_BV = random_logits(len(MIXED) * 2, 300)
    logits_BV[::2, 7] = math.nan
    probs_BV = distribution(logits_BV, stack_sampling([s for s in MIXED for _ in range(2)]))
    assert probs_BV[::2].isnan().all(dim=-1).all()
    torch.testing.assert_close(probs_BV[1::2].sum(dim=-1), torch.ones(len(MIXED)))
    tokens_B = draw(probs_BV, torch.full((len(MIXED) * 2,), 0.5))
    assert ((tokens_B >= 0) & (tokens_B < 300)).all()
    probs_BV[1::2, 5] = math.nan
    tokens_B = draw(probs_BV, torch.full((len(MIXED) * 2,), 0.5))
    assert ((tokens_B >= 0) & (tokens_B < 300)).all()


def test_half_precision_logits_give_float32_and_float64_stays() -> None:
    logits_V = random_logits(50)
    assert distribution(logits_V.bfloat16(), Sampling()).dtype == torch.float32
    assert distribution(logits_V.double(), Sampling(temperature=0.7, top_p=0.9, min_p=0.1)).dtype == torch.float64


def test_gradients_are_those_of_a_softmax_over_the_support() -> None:
    sampling = Sampling(temperature=0.7, top_k=4)
    logits_V = random_logits(12).requires_grad_()
    support = kept(logits_V.detach(), sampling)
    log_distribution(logits_V, sampling)[support[0]].backward()
    expected_V = -distribution(logits_V.detach(), sampling) / 0.7
    expected_V[support[0]] += 1 / 0.7
    torch.testing.assert_close(logits_V.grad, expected_V)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 1e-5, 0.3, 1.0, 5.0]),
    top_k=st.integers(0, 12),
    top_p=st.floats(1e-6, 1.0),
    min_p=st.floats(0.0, 1.0),
)
def test_the_support_is_the_likeliest_tokens(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits_NV = random_logits(3, 10, seed=seed).round()  # rounding makes ties
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    probs_NV = distribution(logits_NV, sampling)
    torch.testing.assert_close(probs_NV.sum(dim=-1), torch.ones(3))
    for logits_V, probs_V in zip(logits_NV, probs_NV, strict=True):
        assert probs_V[logits_V.argmax()] > 0
        if temperature >= 0.3:  # below, kept tokens may underflow to 0
            assert logits_V[probs_V > 0].min() > logits_V[probs_V == 0].max() if (probs_V == 0).any() else True


def test_nothing_is_read_back_from_an_accelerator() -> None:
    """Tensors on the meta device have no values: reading one raises."""
    logits_BXV = torch.empty(len(MIXED), 2, 600, device="meta")
    probs_BXV = distribution(logits_BXV, stack_sampling(MIXED, "meta"))
    assert draw(probs_BXV, torch.empty(len(MIXED), 2, device="meta")).shape == (len(MIXED), 2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e-9),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        Sampling(**{setting: value})


def test_penalties_pass_at_their_neutral_value_alone() -> None:
    options = {"temperature": 0.7, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    assert parse_sampling(options) == Sampling(temperature=0.7)
    with pytest.raises(ValueError, match=r"repetition_penalty is 1\.1"):
        parse_sampling({"repetition_penalty": 1.1})
    with pytest.raises(ValueError, match="typical_p is not"):
        parse_sampling({"typical_p": 0.9})


@pytest.fixture(params=["one level", "two levels"])
def _levels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`draw` by one running sum, as for small vocabularies, and by blocks, as for large ones."""
    monkeypatch.setattr(sampling_module, "_ONE_LEVEL", 0 if request.param == "two levels" else 1 << 30)


@pytest.mark.usefixtures("_levels")
@pytest.mark.parametrize("V", [1, 2, 255, 256, 257, 1000])
def test_draw_inverts_the_cumulative_distribution(V: int) -> None:
    weights_NV = random_logits(50, V, scale=1.0).exp().double()
    weights_NV[:, 1::3] = 0
    uniform_N = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cumulative_NV = weights_NV.cumsum(dim=-1) / weights_NV.sum(dim=-1, keepdim=True)
    expected_N = (cumulative_NV <= uniform_N[:, None]).sum(dim=-1)
    assert torch.equal(draw(weights_NV, uniform_N), expected_N)


@pytest.mark.usefixtures("_levels")
def test_each_token_owns_an_interval_that_includes_its_lower_end() -> None:
    weights_NV = torch.tensor([1.0, 0.0, 2.0, 1.0]).expand(5, 4)
    uniform_N = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights_NV, uniform_N).tolist() == [0, 2, 2, 3, 3]


@pytest.mark.usefixtures("_levels")
def test_draw_at_the_end_of_a_block_does_not_fall_off_it() -> None:
    """The block's sum says the token is inside; its running sum, rounded otherwise, may say that it is past the end."""
    weights_NV = torch.rand((2000, 512), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights_NV[:, 250:256] = 0
    block_N, total_N = weights_NV[:, :256].sum(dim=-1), weights_NV.sum(dim=-1)
    for ulps in range(4):
        tokens_N1 = draw(weights_NV, block_N / total_N - ulps * 2**-53)[:, None]
        assert (weights_NV.gather(1, tokens_N1) > 0).all()


@pytest.mark.usefixtures("_levels")
@pytest.mark.parametrize("V", [5, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_draw_never_returns_a_token_of_weight_zero(V: int, dtype: torch.dtype) -> None:
    weights_NV = random_logits(200, V).exp().to(dtype)
    weights_NV[torch.rand(200, V, generator=torch.Generator().manual_seed(2)) < 0.7] = 0
    weights_NV[:, V // 2] = 0.3
    weights_NV[:, -2:] = 0
    weights_NV[:, 0] = 0
    for uniform in (0.0, 1e-300, 0.5, 1 - 2**-53):
        tokens_N1 = draw(weights_NV, torch.full((200,), uniform, dtype=torch.float64))[:, None]
        assert (weights_NV.gather(1, tokens_N1) > 0).all()


@pytest.mark.usefixtures("_levels")
def test_draw_follows_the_weights() -> None:
    probs_V = distribution(random_logits(300, scale=1.0), Sampling())
    uniform_N = torch.rand(30_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    counts_V = draw(probs_V.expand(30_000, 300), uniform_N).bincount(minlength=300)
    expected_V = (probs_V.double() / probs_V.double().sum() * 30_000).numpy()
    assert stats.chisquare(counts_V.numpy(), expected_V).pvalue > 1e-3
