"""Whether data can have been written by the policy: token ids mean nothing under another tokenizer.

Shapes: B rows, T tokens, N tokens that the policy wrote, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bebop.core.matmul import project_logits
from bebop.errors import UserError
from bebop.models.policy import Policy
from bebop.runs import Mean
from bebop.training.draft_loss import lm_head_weight
from bebop.training.hidden import recomputed
from bebop.training.packing import single_rows
from bebop.training.samples import Sample

NUM_SAMPLES = 8
ROWS_AT_ONCE = 256


def check_plausible(policy: Policy, samples: Sequence[Sample], origin: str) -> None:
    """UserError where the policy finds the first tokens marked as its own less likely than tokens drawn blindly."""
    surprise = sum((surprise_of(policy, one) for one in samples[:NUM_SAMPLES]), Mean()).value
    blind = math.log(policy.config.vocab_size)
    if surprise > blind:
        raise UserError(
            f"{origin}: the policy finds the tokens marked as its own less likely than blind guesses "
            f"({surprise:.1f} nats a token, guessing has {blind:.1f}); the data was made with another tokenizer or "
            "policy, so collect it with this one"
        )


@torch.no_grad()
def surprise_of(policy: Policy, sample: Sample) -> Mean:
    """Negative log-likelihood of the policy's tokens in one sample, nats."""
    pack = single_rows([sample])
    batch, hidden_BTH = pack.batch.to(policy.device), recomputed(policy)(pack).target_BTH
    is_target_T = batch.is_target_BT[0, 1:]
    hidden_NH, tokens_N = hidden_BTH[0, :-1][is_target_T], batch.tokens_BT[0, 1:][is_target_T]
    total = 0.0
    for part_NH, labels_N in zip(hidden_NH.split(ROWS_AT_ONCE), tokens_N.split(ROWS_AT_ONCE), strict=True):
        logprobs_NV = project_logits(part_NH, lm_head_weight(policy)).log_softmax(-1)
        total -= logprobs_NV.gather(-1, labels_N[:, None]).sum().item()
    return Mean(total=total, count=len(tokens_N))
