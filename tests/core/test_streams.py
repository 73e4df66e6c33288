"""Counter-based randomness: it is splitmix64, it is uniform, and no two streams know of one another."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from bebop.core.streams import (
    GeneratorSource,
    Purpose,
    RoundStreams,
    as_source,
    bits,
    coupling_noise,
    fold_key,
    gumbel,
    uniform,
)

MASK = (1 << 64) - 1
WEYL, MULTIPLIER_1, MULTIPLIER_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(x: int) -> int:
    """Splitmix64's output function on Python's integers."""
    x &= MASK
    x = (x ^ x >> 30) * MULTIPLIER_1 & MASK
    x = (x ^ x >> 27) * MULTIPLIER_2 & MASK
    return x ^ x >> 31


def unmix(x: int) -> int:
    """The inverse of `mix`."""
    x = unshift(x, 31) * pow(MULTIPLIER_2, -1, 1 << 64) & MASK
    x = unshift(x, 27) * pow(MULTIPLIER_1, -1, 1 << 64) & MASK
    return unshift(x, 30)


def unshift(x: int, shift: int) -> int:
    return x ^ x >> shift ^ x >> 2 * shift


def signed(x: int) -> int:
    return (x & MASK) - (1 << 64 if x & (1 << 63) else 0)


def key_giving(value: int) -> Tensor:
    """The key whose draw at index 0 has these 64 bits."""
    return torch.tensor([signed(unmix(value) - WEYL)])


def grid(num_seeds: int = 64, num_positions: int = 64, num_indices: int = 64) -> Tensor:
    """Uniforms [purpose, seed, position, index] for consecutive everything."""
    seed, position = torch.arange(num_seeds)[:, None, None], torch.arange(num_positions)[:, None]
    index = torch.arange(num_indices)
    return torch.stack([uniform(fold_key(seed, position, purpose), index) for purpose in Purpose])


def test_the_integers_are_those_of_splitmix64() -> None:
    """The published first outputs for seed 1234567."""
    drawn = [value & MASK for value in bits(torch.tensor([1234567]), torch.arange(3)).tolist()]
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("position", [0, 1, 2**40])
@pytest.mark.parametrize("purpose", list(Purpose))
def test_keys_fold_as_documented(seed: int, position: int, purpose: Purpose) -> None:
    key = mix(mix(mix(seed + WEYL) + (position + 1) * WEYL) + int(purpose) * WEYL)
    assert fold_key(torch.tensor([seed]), torch.tensor([position]), purpose).item() & MASK == key


def test_inputs_are_not_changed() -> None:
    seed, position, index = torch.arange(4), torch.arange(4), torch.arange(4)
    bits(fold_key(seed, position, Purpose.DRAFT), index)
    for tensor in (seed, position, index):
        assert torch.equal(tensor, torch.arange(4))


def test_a_uniform_is_never_one_and_noise_is_always_finite() -> None:
    for extreme in (0, 1, MASK, MASK >> 1, (MASK >> 1) + 1, MASK - 1):
        key = key_giving(extreme)
        assert bits(key, torch.zeros(1, dtype=torch.int64)).item() & MASK == extreme
        assert 0 <= uniform(key, torch.zeros(1, dtype=torch.int64)).item() < 1
        for dtype in (torch.float32, torch.float64):
            assert gumbel(key, 1, dtype=dtype).isfinite().all()


def test_large_noise_is_fine_grained() -> None:
    """Two neighbouring draws far in the tail, where 24-bit uniforms would have no value left."""
    low, high = (gumbel(key_giving(value), 1).item() for value in (1 << 30, (1 << 30) + (1 << 26)))
    assert low > 20 and high > 20 and low != high


@pytest.mark.parametrize("axis", range(4), ids=["purpose", "seed", "position", "index"])
def test_neighbours_along_every_axis_are_uniform_and_independent(axis: int) -> None:
    values = grid(32, 32, 64)
    first, second = values.narrow(axis, 0, values.shape[axis] - 1), values.narrow(axis, 1, values.shape[axis] - 1)
    cell = (first * 16).long() * 16 + (second * 16).long()
    assert stats.chisquare(cell.flatten().bincount(minlength=256).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("low_bits", [False, True])
def test_a_million_draws_are_uniform(low_bits: bool) -> None:
    values = grid().flatten()
    values = (values * 2.0**40) % 1 if low_bits else values
    assert stats.chisquare((values * 1024).long().bincount(minlength=1024).numpy()).pvalue > 1e-3


def test_distant_lags_and_crossed_axes_do_not_correlate() -> None:
    """Seed + 1 with position - 1, and the like: a key that adds its members would fail."""
    values = grid(32, 32, 32) - 0.5
    for shifts in [(1, -1, 0), (1, 0, -1), (0, 1, -1), (1, -1, 1), (16, 0, 0), (0, 16, 0), (2, 2, -4)]:
        shifted = values.roll(shifts, dims=(1, 2, 3))
        correlation = float((values * shifted).mean() * 12)
        assert abs(correlation) < 4.5 / values.numel() ** 0.5, shifts


def test_gumbel_noise_has_its_law() -> None:
    noise = coupling_noise(torch.arange(20), torch.arange(10).expand(20, 10), 500)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3


def test_noise_does_not_depend_on_its_batch_and_serves_any_vocabulary() -> None:
    seed_B, position_BX = torch.arange(5), torch.arange(15).view(5, 3)
    noise_BXV = coupling_noise(seed_B, position_BX, 40_000)
    assert torch.equal(noise_BXV[3, 1], coupling_noise(seed_B[3:4], position_BX[3:4, 1:2], 40_000)[0, 0])
    assert torch.equal(noise_BXV[3, 1, :300], coupling_noise(seed_B[3:4], position_BX[3:4, 1:2], 300)[0, 0])


def test_round_streams_depend_on_their_row_alone() -> None:
    streams = RoundStreams(seed_B=torch.tensor([5, 6, 5]), position_B=torch.tensor([1, 1, 2]))
    index_BK = torch.arange(4).expand(3, 4)
    all_BK = streams.uniform(Purpose.ACCEPT, index_BK)
    one_BK = RoundStreams(seed_B=torch.tensor([6]), position_B=torch.tensor([1])).uniform(
        Purpose.ACCEPT, index_BK[:1, :2]
    )
    assert torch.equal(all_BK[1:2, :2], one_BK)
    assert torch.equal(all_BK[:, 0], streams.uniform(Purpose.ACCEPT, torch.zeros(3, dtype=torch.int64)))
    assert all_BK.unique().numel() == 12
    assert not torch.equal(all_BK, streams.uniform(Purpose.LEFTOVER, index_BK))


def test_a_generator_is_a_source_of_fresh_coins() -> None:
    source = as_source(torch.Generator().manual_seed(7))
    assert isinstance(source, GeneratorSource)
    index_BK = torch.zeros(2, 3, dtype=torch.int64)
    first_BK, second_BK = source.uniform(Purpose.ACCEPT, index_BK), source.uniform(Purpose.ACCEPT, index_BK)
    assert first_BK.dtype == torch.float64 and first_BK.shape == (2, 3)
    assert not torch.equal(first_BK, second_BK)
    again_BK = as_source(torch.Generator().manual_seed(7)).uniform(Purpose.LEFTOVER, index_BK)
    assert torch.equal(first_BK, again_BK)
