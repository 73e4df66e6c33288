"""Run the Triton kernels against the plain loss in float64 and print one JSON object, case -> "" or what differs.

A script of its own, because Triton decides at its first import whether kernels are interpreted: on a GPU when there is
one, else with ``TRITON_INTERPRET=1`` in the environment.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial

import torch
from fused_regimes import REGIMES, Batch, check_against_plain, random_batch

from bebop.core.curriculum import LossTerm, combine
from bebop.core.fused import Fusion, fused_loss
from bebop.core.fused_triton import TritonKernels
from bebop.core.objectives import OBJECTIVES

MIXED = combine([LossTerm(objective="reverse_kl"), LossTerm(objective="lk_lambda"), LossTerm(objective="ce_tv")])
# Logits of some hundreds round by 1e-5 in float32, and probabilities by as much in proportion.
TOLERANCES = {"saturated": 1e-3, "one_hot_target": 1e-3, "no_overlap": 1e-3}


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernels = TritonKernels(statistics_block=16, gradient_block=32)
    # Interpreted kernels are slow, and objectives differ in their composition, which is not Triton's.
    names = OBJECTIVES if device.type == "cuda" else ("ce", "kl", "reverse_kl", "e2e_tv_path", "lk_lambda")
    cases = {f"random/{name}": (first_chains(random_batch()), OBJECTIVES[name]) for name in names}
    cases |= {
        f"{regime}/e2e_tv": (make() if regime == "masked" else first_chains(make()), OBJECTIVES["e2e_tv"])
        for regime, make in REGIMES.items()
        if regime != "random"
    }
    cases |= {"warm_and_cold/mixed": (first_chains(REGIMES["warm_and_cold"]()), MIXED)}
    if device.type == "cuda":
        cases |= {"wide/e2e_tv": (random_batch(num_chains=64, vocabulary=248_320), OBJECTIVES["e2e_tv"])}
    loss = partial(fused_loss, fusion=Fusion(kernels=kernels))
    results = {}
    for case, (batch, objective) in cases.items():
        tolerance = TOLERANCES.get(case.split("/")[0], 5e-5)
        try:
            check_against_plain(loss, on(device, batch), objective, torch.float32, tolerance)
        except AssertionError as difference:
            results[case] = str(difference) or "differs"
        else:
            results[case] = ""
    json.dump(results, sys.stdout, indent=2)


def first_chains(batch: Batch, num_chains: int = 2) -> Batch:
    chains = replace(
        batch.chains,
        draft_states_NKH=batch.chains.draft_states_NKH[:num_chains],
        positions_NK=batch.chains.positions_NK[:num_chains],
        tokens_NK=batch.chains.tokens_NK[:num_chains],
    )
    return replace(batch, chains=chains)


def on(device: torch.device, batch: Batch) -> Batch:
    moved = {
        name: value.to(device)
        for name in ("draft_states_NKH", "target_states_PH", "positions_NK", "tokens_NK", "depth_mask_NK")
        if (value := getattr(batch.chains, name)) is not None
    }
    return replace(batch, chains=replace(batch.chains, **moved), head_weight_VH=batch.head_weight_VH.to(device))


if __name__ == "__main__":
    main()
