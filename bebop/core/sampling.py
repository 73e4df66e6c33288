"""Logits to *the* distribution: the one that is drafted from, verified, recorded and learned.

Shape letters: B requests, X any middle dims, V vocabulary, N = B * X flattened rows, R rows that are truncated,
C candidates (the largest few logits of a row, descending), M blocks of W tokens.

The order is that of transformers' logits warpers:

1. temperature: logits / T; T = 0 is greedy, a one-hot at the *first* largest logit, and the other settings are moot;
2. top-k: the k largest;
3. top-p: the smallest set of largest ones whose mass, within what top-k kept, reaches top_p;
4. min-p: those with at least min_p times the largest probability.

Each step keeps an upper set (all tokens at or above some logit), so each comes down to one threshold per row, and
their composition is the largest threshold. Ties at a threshold are all kept, so the support never depends on how a
sort breaks ties. Because min-p compares with the row's maximum, which no step removes, it commutes with top-k; it does
not commute with top-p (vLLM applies min-p first, so the two engines differ when both are set).

Penalties that look at earlier tokens (repetition, frequency, presence) are not functions of one row of logits and
would have to be recomputed for each drafted position; ``parse_sampling`` refuses them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

# Below this a logit gap of 1 is already a factor of e^100000: indistinguishable from greedy and close to overflow.
MIN_TEMPERATURE = 1e-5

# Nuclei of language models rarely hold more tokens; for rows that do, 16 times as many are looked at until it suffices.
_NUM_CANDIDATES = 256

_BLOCK = 256  # W, tokens that `draw` adds up together
_ONE_LEVEL = 2048  # V up to which a running sum over all tokens takes less time than the operations of two levels

# Settings of other engines that depend on earlier tokens, with the value that switches each off.
_HISTORY_SETTINGS = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one request turns logits into a distribution. Raises ``ValueError`` at birth on a value out of range."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off
    min_p: float = 0.0  # 0 = off

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf):
            raise ValueError(
                f"temperature is {self.temperature}: use 0 for greedy, or a finite value of at least {MIN_TEMPERATURE}."
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: use a whole number of tokens, or 0 for no limit.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: use a mass above 0 and at most 1 (1 = no limit).")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}: use a ratio between 0 (no limit) and 1.")

    @property
    def is_greedy(self) -> bool:
        """Whether the distribution is a one-hot."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)


def parse_sampling(options: Mapping[str, float]) -> Sampling:
    """Sampling from settings as other engines name them.

    Penalties on earlier tokens are accepted at their neutral value and refused otherwise, because they cannot be
    exact inside a drafted block. Raises ``ValueError`` that names the setting.
    """
    known = {field.name for field in fields(Sampling)}
    for name, value in options.items():
        neutral = _HISTORY_SETTINGS.get(name)
        if name in known or (neutral is not None and value == neutral):
            continue
        if neutral is not None:
            raise ValueError(f"{name} is {value}: it depends on earlier tokens; leave it at {neutral}.")
        raise ValueError(f"{name} is not a sampling setting; use one of {', '.join(sorted(known))}.")
    return Sampling(**{name: value for name, value in options.items() if name in known})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingTensors:
    """The settings of B requests on a device, with what the host must know to skip work without asking the device."""

    temperature_B: Tensor  # 1 in greedy rows
    top_k_R: Tensor  # rows of `truncated_R` alone, as is top_p_R
    top_p_R: Tensor
    log_min_p_B: Tensor  # -inf = off
    greedy_B: Tensor
    truncated_R: Tensor  # indices of the rows with top-k or top-p
    max_top_k: int
    has_top_p: bool
    has_min_p: bool
    has_greedy: bool
    has_temperature: bool  # some row divides by other than 1

    @property
    def is_plain(self) -> bool:
        """Whether every row's distribution is the softmax of its logits."""
        is_cut = self.truncated_R.numel() > 0 or self.has_min_p
        return not (is_cut or self.has_greedy or self.has_temperature)


def stack_sampling(samplings: Sequence[Sampling], device: torch.device | str | None = None) -> SamplingTensors:
    """The settings of B requests as tensors. Copies to the device: call it when the batch changes, not every step."""
    sampled = [sampling for sampling in samplings if not sampling.is_greedy]
    cut = [row for row, s in enumerate(samplings) if not s.is_greedy and (s.top_k > 0 or s.top_p < 1)]
    temperature = [1.0 if s.is_greedy else s.temperature for s in samplings]
    log_min_p = [math.log(s.min_p) if s.min_p > 0 else -math.inf for s in samplings]

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return SamplingTensors(
        temperature_B=floats(temperature),
        top_k_R=torch.tensor([samplings[row].top_k for row in cut], dtype=torch.int64, device=device),
        top_p_R=floats([samplings[row].top_p for row in cut]),
        log_min_p_B=floats(log_min_p),
        greedy_B=torch.tensor([s.is_greedy for s in samplings], dtype=torch.bool, device=device),
        truncated_R=torch.tensor(cut, dtype=torch.int64, device=device),
        max_top_k=max((samplings[row].top_k for row in cut), default=0),
        has_top_p=any(samplings[row].top_p < 1 for row in cut),
        has_min_p=any(s.min_p > 0 for s in sampled),
        has_greedy=len(sampled) < len(samplings),
        has_temperature=any(s.temperature != 1 for s in sampled),
    )


def distribution(logits_XV: Tensor, sampling: Sampling | SamplingTensors) -> Tensor:
    """Probabilities [X, V] of the next token: float32, or float64 for float64 logits.

    With `SamplingTensors` of B requests the logits are [B, ..., V] and request b owns ``logits[b]``. Nothing is read
    back from the device. A row with NaN logits yields a row of NaN and leaves the others alone.
    """
    return torch.softmax(restrict(logits_XV, sampling), dim=-1)


def log_distribution(logits_XV: Tensor, sampling: Sampling | SamplingTensors) -> Tensor:
    """Log-probabilities [X, V] of the same distribution; -inf outside its support. Differentiable in the logits."""
    return torch.log_softmax(restrict(logits_XV, sampling), dim=-1)


def restrict(logits_XV: Tensor, sampling: Sampling | SamplingTensors) -> Tensor:
    """Logits after temperature, -inf outside the support: what `distribution` takes the softmax of."""
    logits_XV = logits_XV if logits_XV.dtype == torch.float64 else logits_XV.float()
    is_stacked = isinstance(sampling, SamplingTensors)
    table = sampling if is_stacked else stack_sampling([sampling], logits_XV.device)
    num_rows, V = logits_XV.shape[0] if is_stacked else 1, logits_XV.shape[-1]
    logits_BXV = logits_XV.reshape(num_rows, math.prod(logits_XV.shape[:-1]) // max(num_rows, 1), V)
    return _restrict_rows(logits_BXV, table).reshape(logits_XV.shape)


def draw(weights_XV: Tensor, uniform_X: Tensor) -> Tensor:
    """Token [X] by inverse CDF: the first whose cumulative weight exceeds ``uniform * total``, uniform in [0, 1).

    Weights need not be normalised. Sums are float64, so that tokens below float32 resolution keep their chance. A token
    of weight 0 is never returned, whatever the rounding, unless the whole row is 0. A NaN row gives some valid index.
    """
    if weights_XV.shape[-1] <= _ONE_LEVEL:
        cumulative_XV = weights_XV.cumsum(dim=-1, dtype=torch.float64)
        wanted_X1 = uniform_X.to(torch.float64)[..., None] * cumulative_XV[..., -1:]
        return _first_above(cumulative_XV, weights_XV, wanted_X1).squeeze(-1)
    # Two levels, blocks and then tokens of one block: the running sum is then short, and most of V is only added up.
    width = _BLOCK
    blocks_XMW = pad(weights_XV, (0, -weights_XV.shape[-1] % width)).unflatten(-1, (-1, width))
    mass_XM = blocks_XMW.sum(dim=-1, dtype=torch.float64)
    cumulative_XM = mass_XM.cumsum(dim=-1)
    wanted_X1 = uniform_X.to(torch.float64)[..., None] * cumulative_XM[..., -1:]
    block_X1 = _first_above(cumulative_XM, mass_XM, wanted_X1)
    wanted_X1 = wanted_X1 - (cumulative_XM - mass_XM).gather(-1, block_X1)
    weights_XW = blocks_XMW.take_along_dim(block_X1[..., None], dim=-2).squeeze(-2)
    token_X1 = _first_above(weights_XW.cumsum(dim=-1, dtype=torch.float64), weights_XW, wanted_X1)
    return (block_X1 * width + token_X1).squeeze(-1)


def _first_above(cumulative_XM: Tensor, weights_XM: Tensor, wanted_X1: Tensor) -> Tensor:
    """The first index [X, 1] whose cumulative weight exceeds `wanted`; its own weight is positive if any weight is."""
    found_X1 = torch.searchsorted(cumulative_XM, wanted_X1, right=True).clamp(max=weights_XM.shape[-1] - 1)
    # A block's sum and its running sum differ in the last bit, and a parallel scan need not be monotone to that bit.
    is_possible_X1 = weights_XM.gather(-1, found_X1) > 0
    return torch.where(is_possible_X1, found_X1, weights_XM.argmax(dim=-1, keepdim=True))


def _restrict_rows(logits_BXV: Tensor, table: SamplingTensors) -> Tensor:
    scaled_BXV = logits_BXV / table.temperature_B[:, None, None] if table.has_temperature else logits_BXV
    if table.truncated_R.numel() > 0 or table.has_min_p:
        cut_BX1 = _threshold(scaled_BXV.detach(), table)
        scaled_BXV = torch.where(scaled_BXV < cut_BX1, -math.inf, scaled_BXV)
    if table.has_greedy:
        is_best_BXV = torch.zeros_like(scaled_BXV, dtype=torch.bool)
        is_best_BXV.scatter_(-1, scaled_BXV.argmax(dim=-1, keepdim=True), True)
        scaled_BXV = scaled_BXV.masked_fill(table.greedy_B[:, None, None] & ~is_best_BXV, -math.inf)
    return scaled_BXV


def _threshold(scaled_BXV: Tensor, table: SamplingTensors) -> Tensor:
    """The smallest scaled logit [B, X, 1] that stays."""
    B, X, V = scaled_BXV.shape
    cut_BX1 = scaled_BXV.new_full((B, X, 1), -math.inf)
    if table.has_min_p:
        cut_BX1 = scaled_BXV.amax(dim=-1, keepdim=True) + table.log_min_p_B[:, None, None]
    R = table.truncated_R.numel()
    if R == 0:
        return cut_BX1
    rows_BXV = scaled_BXV if R == B else scaled_BXV[table.truncated_R]
    cut_N1 = _order_threshold(rows_BXV.reshape(R * X, V), table)
    cut_RX1 = torch.maximum(cut_BX1[table.truncated_R], cut_N1.view(R, X, 1))
    return cut_BX1.index_copy(0, table.truncated_R, cut_RX1)


def _order_threshold(scaled_NV: Tensor, table: SamplingTensors) -> Tensor:
    """Threshold [N, 1] of top-k, then top-p within it."""
    N, V = scaled_NV.shape
    repeats = N // table.truncated_R.numel()
    top_k_N1 = table.top_k_R.repeat_interleave(repeats, output_size=N)[:, None].clamp(max=V)
    num_candidates = max(min(table.max_top_k, V), min(_NUM_CANDIDATES, V) if table.has_top_p else 1)
    best_NC = scaled_NV.topk(num_candidates, dim=-1).values
    kth_N1 = best_NC.gather(-1, (top_k_N1 - 1).clamp(min=0)).masked_fill(top_k_N1 == 0, -math.inf)
    if not table.has_top_p:
        return kth_N1
    top_p_N1 = table.top_p_R.repeat_interleave(repeats, output_size=N)[:, None]
    allowed_NV = torch.where(scaled_NV < kth_N1, -math.inf, scaled_NV) if table.max_top_k > 0 else scaled_NV
    # A softmax, not a logsumexp: the latter is many times slower on -inf.
    top_prob_N1 = allowed_NV.softmax(dim=-1).amax(dim=-1, keepdim=True)
    return torch.maximum(kth_N1, _nucleus_threshold(scaled_NV, best_NC, top_prob_N1, top_p_N1))


def _nucleus_threshold(scaled_NV: Tensor, best_NC: Tensor, top_prob_N1: Tensor, top_p_N1: Tensor) -> Tensor:
    """Threshold [N, 1] of top-p, from the C largest logits where they suffice and from more where not.

    `top_prob_N1` is the probability of the largest within what top-k kept.
    """
    C, V = best_NC.shape[-1], scaled_NV.shape[-1]
    if scaled_NV.device.type != "cpu" and C < V:
        # One sort is cheap there, while asking whether the candidates suffice would stall the device.
        best_NC = scaled_NV.sort(dim=-1, descending=True).values
    probs_NC = (best_NC - best_NC[:, :1]).exp() * top_prob_N1
    mass_before_NC = probs_NC.cumsum(dim=-1, dtype=torch.float64) - probs_NC
    is_kept_NC = mass_before_NC < top_p_N1
    last_N1 = (is_kept_NC.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    cut_N1 = best_NC.gather(-1, last_N1).masked_fill(top_p_N1 == 1, -math.inf)
    if best_NC.shape[-1] < V:
        open_M = (is_kept_NC[:, -1] & (top_p_N1[:, 0] < 1)).nonzero().squeeze(-1)
        if open_M.numel() > 0:
            open_MV = scaled_NV[open_M]
            best_MC = open_MV.topk(min(16 * C, V), dim=-1).values
            cut_N1[open_M] = _nucleus_threshold(open_MV, best_MC, top_prob_N1[open_M], top_p_N1[open_M])
    return cut_N1
