"""Batches in which a fused loss can break, each in its own way, and the comparison with the plain loss in float64.

Shapes: N chains, K depths, H hidden size, P target positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bebop.core.chains import ChainLoss, DraftChains, TemperatureMixture, plain_loss
from bebop.core.objectives import Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch in float64 (values exact in the type it is meant for) with upstream weights per chain."""

    chains: DraftChains
    head_weight_VH: Tensor
    mixture: TemperatureMixture = TemperatureMixture()  # noqa: RUF009

    def to(self, dtype: torch.dtype) -> Batch:
        chains = replace(
            self.chains,
            draft_states_NKH=self.chains.draft_states_NKH.to(dtype),
            target_states_PH=self.chains.target_states_PH.to(dtype),
        )
        return replace(self, chains=chains, head_weight_VH=self.head_weight_VH.to(dtype))


def random_batch(num_chains=6, num_depths=3, hidden=5, vocabulary=37, scale=1.0, noise=0.5, seed=0) -> Batch:
    """Consecutive anchors that share positions, a draft near its target, tokens from the target."""
    rng = torch.Generator().manual_seed(seed)
    weight_VH = scale * torch.randn(vocabulary, hidden, generator=rng, dtype=torch.float64)
    target_PH = torch.randn(num_chains + num_depths, hidden, generator=rng, dtype=torch.float64)
    positions_NK = torch.arange(num_chains)[:, None] + torch.arange(1, num_depths + 1)
    draft_NKH = target_PH[positions_NK]
    draft_NKH = draft_NKH + noise * torch.randn(draft_NKH.shape, generator=rng, dtype=torch.float64)
    tokens_P = (target_PH @ weight_VH.T).softmax(-1).multinomial(1, generator=rng).squeeze(-1)
    chains = DraftChains(
        draft_states_NKH=draft_NKH,
        target_states_PH=target_PH,
        positions_NK=positions_NK,
        tokens_NK=tokens_P[positions_NK],
    )
    return Batch(chains=chains, head_weight_VH=weight_VH)


def saturated() -> Batch:
    """Logits in the hundreds: most probabilities underflow, overlaps are near 0 or 1."""
    return random_batch(scale=60.0, noise=0.3)


def equal() -> Batch:
    """q = p everywhere: every token ties. Integers, so that no product rounds and ties are exact."""
    batch = random_batch(noise=0.0)
    target_PH = batch.chains.target_states_PH.mul(2).round()
    chains = replace(batch.chains, target_states_PH=target_PH, draft_states_NKH=target_PH[batch.chains.positions_NK])
    return replace(batch, chains=chains, head_weight_VH=batch.head_weight_VH.round())


def some_ties() -> Batch:
    """Half of each law's support ties exactly: both are uniform over four tokens and share two of them.

    The third hidden dimension is silent in the states; it makes each token's logit gradient visible.
    """
    never = -1000.0
    target_V, draft_V = [0.0, 0, 0, 0, never, never, never], [0.0, 0, never, never, 0, 0, never]
    visible_V = [1.0, 2, 4, 8, 16, 32, 64]
    weight_VH = torch.tensor([target_V, draft_V, visible_V], dtype=torch.float64).T.contiguous()
    chains = DraftChains(
        draft_states_NKH=torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(4, 3, 3).contiguous(),
        target_states_PH=torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64),
        positions_NK=torch.zeros(4, 3, dtype=torch.long),
        tokens_NK=torch.tensor([0, 1, 3, 2])[:, None].expand(4, 3),
    )
    return Batch(chains=chains, head_weight_VH=weight_VH)


def one_hot_target() -> Batch:
    """The target is certain of its token, the draft is not."""
    batch = random_batch()
    certain_PH = 400 * batch.chains.target_states_PH
    tokens_P = (certain_PH @ batch.head_weight_VH.T).argmax(-1)
    chains = replace(batch.chains, target_states_PH=certain_PH, tokens_NK=tokens_P[batch.chains.positions_NK])
    return replace(batch, chains=chains)


def no_overlap() -> Batch:
    """Two positions where the target is certain of one token and every draft of another: alpha is exactly 0 there."""
    batch = random_batch()
    target_PH = batch.chains.target_states_PH.clone()
    target_PH[[2, 5]] *= 1000
    certain_NK1 = torch.isin(batch.chains.positions_NK, torch.tensor([2, 5]))[..., None]
    draft_NKH = batch.chains.draft_states_NKH.where(~certain_NK1, -target_PH[batch.chains.positions_NK])
    chains = replace(batch.chains, target_states_PH=target_PH, draft_states_NKH=draft_NKH)
    return replace(batch, chains=chains)


def masked() -> Batch:
    """Tails outside the document with ids that must never be read, a hole, and chains that count nowhere."""
    batch = random_batch(num_chains=7)
    mask_NK = torch.ones(7, 3, dtype=torch.bool)
    mask_NK[0, 2] = mask_NK[3, 1] = mask_NK[4, 0] = False
    mask_NK[5], mask_NK[6, 1:] = False, False
    counted_NK = mask_NK.int().cumprod(-1).bool()
    chains = replace(
        batch.chains,
        depth_mask_NK=mask_NK,
        tokens_NK=batch.chains.tokens_NK.where(counted_NK, -1),
        positions_NK=batch.chains.positions_NK.where(counted_NK, 10**6),
    )
    return replace(batch, chains=chains)


def warm_and_cold() -> Batch:
    """Three temperatures with unequal weights."""
    return replace(random_batch(), mixture=TemperatureMixture(temperatures=(0.6, 1.0, 1.7), weights=(1, 2, 3)))


def single_depth() -> Batch:
    return random_batch(num_chains=9, num_depths=1)


REGIMES: Mapping[str, Callable[[], Batch]] = {
    "random": random_batch,
    "saturated": saturated,
    "equal": equal,
    "some_ties": some_ties,
    "one_hot_target": one_hot_target,
    "no_overlap": no_overlap,
    "masked": masked,
    "warm_and_cold": warm_and_cold,
    "single_depth": single_depth,
}

Loss = Callable[[DraftChains, Tensor, Objective, TemperatureMixture], ChainLoss]


def value_and_gradient(loss: Loss, batch: Batch, objective: Objective) -> tuple[ChainLoss, Tensor]:
    """The loss, and the gradient of the states under unequal upstream weights."""
    states_NKH = batch.chains.draft_states_NKH.clone().requires_grad_()
    result = loss(replace(batch.chains, draft_states_NKH=states_NKH), batch.head_weight_VH, objective, batch.mixture)
    upstream_N = torch.linspace(0.5, 2, len(result.loss_N)).to(result.loss_N)
    (gradient_NKH,) = torch.autograd.grad((result.loss_N * upstream_N).sum(), states_NKH)
    return result, gradient_NKH


def check_against_plain(loss: Loss, batch: Batch, objective: Objective, dtype: torch.dtype, tolerance: float) -> None:
    """``loss`` in ``dtype`` equals the plain loss in float64 on the same inputs: values, gradient, statistics."""
    narrow = batch.to(dtype)
    result, gradient_NKH = value_and_gradient(loss, narrow, objective)
    expected, expected_gradient_NKH = value_and_gradient(plain_loss, narrow.to(torch.float64), objective)
    assert gradient_NKH.dtype == dtype
    near = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(result.loss_N.double(), expected.loss_N, **near)
    scale = expected_gradient_NKH.abs().max().clamp(min=tolerance**0.5)
    torch.testing.assert_close(
        gradient_NKH.double() / scale, expected_gradient_NKH / scale, rtol=tolerance, atol=10 * tolerance
    )
    for found, wanted in zip(result.statistics, expected.statistics, strict=True):
        for name in ("draft_logprob_NK", "target_logprob_NK", "overlap_NK", "kl_NK", "reverse_kl_NK"):
            torch.testing.assert_close(
                getattr(found, name)[result.counted_NK].double(),
                getattr(wanted, name)[expected.counted_NK],
                **near,
                msg=lambda text, name=name: f"{name}: {text}",
            )
