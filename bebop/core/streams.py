"""Counter-based randomness: a draw is a function of (request seed, position, purpose, index) and of nothing else.

A request's tokens therefore do not depend on what shares its batch, on the order of calls, or on the device, and
draws for different purposes are independent. A 64-bit key is folded from the tuple, one full mix per member; the
draw is the key's splitmix64 sequence at `index` (Steele, Lea, Flood 2014: a Weyl sequence through a 64-bit mixer; it
passes BigCrush). Integers are exact everywhere; the logarithms of Gumbel noise may differ between devices in the last
bit.

What `position` must be, or verification is biased:

* ratio rules (rejection, block, target-only): the position at which the *round* starts, with the depth as index.
  Rounds of a request start at different positions, so no draw is used twice. Keying them by the drafted token's own
  position would let a later round reuse draws that already decided an earlier block's length.
* coupling: the position of the *token*, with the vocabulary as index, so that noise is the same however the
  position is reached.

Shape letters: B requests, X any dims, N flattened keys, V vocabulary.
"""

import enum
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

_WEYL = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number: 2^64 / golden ratio, odd
_MULTIPLIER_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_CACHE_ELEMENTS = 1 << 16  # 64-bit numbers per CPU block: half a megabyte stays in the second-level cache


class Purpose(enum.IntEnum):
    """What a draw decides. Draws for different purposes are independent; the numbers are part of the stream's law."""

    DRAFT = 1  # which token is proposed at a depth
    ACCEPT = 2  # whether a proposal survives
    LEFTOVER = 3  # the token after the accepted prefix, residual or bonus; with K = 0, every token
    COUPLING = 4  # the noise that draft and target share


# purpose times _WEYL, as a signed 64-bit number: a sum with a Python number must not leave that range.
_PURPOSE_STEPS = {p: (p * _WEYL + (1 << 63)) % (1 << 64) - (1 << 63) for p in Purpose}


class UniformSource(Protocol):
    """Where verification gets its coins."""

    def uniform(self, purpose: Purpose, index_BX: Tensor) -> Tensor:
        """Float64 uniforms in [0, 1), one for each index [B, X] of the rows' own streams."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundStreams:
    """The streams of B rows for one round: seed and position of each row, int64 [B]."""

    seed_B: Tensor
    position_B: Tensor
    round_key_B: Tensor = field(init=False, repr=False)
    """What the keys of all purposes have in common, mixed once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "round_key_B", _fold_round(self.seed_B, self.position_B))

    def uniform(self, purpose: Purpose, index_BX: Tensor) -> Tensor:
        """Float64 uniforms in [0, 1), [B, X]: multiples of 2^-53, so 1 cannot occur."""
        key_B = _fold_purpose(self.round_key_B, purpose)
        return uniform(key_B.view(-1, *[1] * (index_BX.dim() - 1)), index_BX)


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorSource:
    """A ``torch.Generator`` as a source of coins: fresh ones at every call, whatever purpose and index say."""

    generator: torch.Generator

    def uniform(self, purpose: Purpose, index_BX: Tensor) -> Tensor:
        """Float64 uniforms in [0, 1), [B, X], on the indices' device."""
        del purpose
        device = self.generator.device
        return torch.rand(index_BX.shape, generator=self.generator, dtype=torch.float64, device=device).to(
            index_BX.device
        )


def as_source(rng: torch.Generator | UniformSource) -> UniformSource:
    """The source of coins behind either kind of `rng`."""
    return GeneratorSource(generator=rng) if isinstance(rng, torch.Generator) else rng


def fold_key(seed_X: Tensor, position_X: Tensor, purpose: Purpose) -> Tensor:
    """The 64-bit key [X] of a stream; int64 inputs broadcast."""
    return _fold_purpose(_fold_round(seed_X, position_X), purpose)


def bits(key_X: Tensor, index_X: Tensor) -> Tensor:
    """The 64 random bits (int64) at `index` of the key's sequence; inputs broadcast."""
    return _mix(key_X + (index_X + 1) * _WEYL)


def uniform(key_X: Tensor, index_X: Tensor) -> Tensor:
    """Float64 uniforms in [0, 1): the top 53 bits, so the largest is 1 - 2^-53."""
    top_X = bits(key_X, index_X).bitwise_right_shift_(11).bitwise_and_((1 << 53) - 1)
    return top_X.double().mul_(2.0**-53)


def gumbel(key_X: Tensor, num_categories: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel noise [X, V] for categories 0..V-1 of each stream; always finite.

    G = -log(-log(1 - w)) with w = bits / 2^63. Large G come from small w, where a float is fine-grained: a token of
    probability 1e-12 still wins as often as it should, which 24-bit uniforms cannot give.
    """
    flat_N = key_X.reshape(-1)
    index_V = torch.arange(num_categories, device=key_X.device)
    noise_NV = torch.empty((flat_N.numel(), num_categories), dtype=dtype, device=key_X.device)
    rows = max(1, _CACHE_ELEMENTS // num_categories) if key_X.device.type == "cpu" else max(1, flat_N.numel())
    for start in range(0, flat_N.numel(), rows):
        block_NV = noise_NV[start : start + rows]
        block_NV.copy_(bits(flat_N[start : start + rows, None], index_V).bitwise_and_((1 << 63) - 1))
        # Neither bound is 0 or 1, so that both logarithms are finite.
        block_NV.mul_(2.0**-63).clamp_(2.0**-64, 1 - torch.finfo(dtype).eps / 2)
        block_NV.neg_().log1p_().neg_().log_().neg_()
    return noise_NV.view(*key_X.shape, num_categories)


def coupling_noise(seed_B: Tensor, position_BX: Tensor, num_categories: int) -> Tensor:
    """The shared noise [B, X, V] of token positions [B, X]; float32. The same whichever round reaches a position."""
    seed_BX = seed_B.view(-1, *[1] * (position_BX.dim() - 1))
    return gumbel(fold_key(seed_BX, position_BX, Purpose.COUPLING), num_categories)


def _fold_round(seed_X: Tensor, position_X: Tensor) -> Tensor:
    return _mix(_mix(seed_X + _WEYL) + (position_X + 1) * _WEYL)


def _fold_purpose(key_X: Tensor, purpose: Purpose) -> Tensor:
    return _mix(key_X + _PURPOSE_STEPS[purpose])


def _mix(x: Tensor) -> Tensor:
    """Splitmix64's output function, a bijection of 64-bit numbers. Overwrites its argument."""
    x = _xor_shift(x, 30).mul_(_MULTIPLIER_1)
    x = _xor_shift(x, 27).mul_(_MULTIPLIER_2)
    return _xor_shift(x, 31)


def _xor_shift(x: Tensor, shift: int) -> Tensor:
    """``x ^= x >>> shift``. Torch shifts int64 with the sign, hence the mask."""
    return x.bitwise_xor_(x.bitwise_right_shift(shift).bitwise_and_((1 << (64 - shift)) - 1))
