"""Cost of the head's loss: eager against fused, value and gradient of the draft states, at one size.

``eager`` is what a careful trainer writes with logits [N, K, V] and autograd, one function per objective and nothing it
does not need (``plain_loss``, the reference for tests, computes every statistic and takes more memory).

Memory is the peak of live tensor bytes beyond the inputs (the allocator's own count on a GPU, the profiler's on a CPU).
Time is the median over rounds in which every candidate runs once, in turn, so that a slow moment hits all alike; on a
CPU it is processor time (user + system, summed over threads), which other programs on the machine disturb least.

Shapes: N chains, K draft depths, H hidden size, P target positions, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from bebop.bench.timing import spread
from bebop.core.chains import DraftChains
from bebop.core.fused import Fusion, fused_loss, fusion_for
from bebop.core.fused_rows import ChunkedKernels
from bebop.core.objectives import OBJECTIVES
from bebop.errors import UserError, run_as_program

MeanLoss = Callable[[DraftChains, Tensor], Tensor]
"""Chains and lm_head weight -> scalar loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossBench:
    """What is measured. The defaults are the size that matters: 2,048 rows of a vocabulary of 248,320."""

    num_chains: int = 512
    num_depths: int = 4
    hidden: int = 256
    vocabulary: int = 248_320
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int = 3
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Objectives of the fused path; must include ce and e2e_tv, the two that the eager path has."""
    logits_bytes: int | None = None
    """Bound of the fused path on the logits it holds; None = the device's default."""

    def __post_init__(self) -> None:
        if not {"ce", "e2e_tv"} <= set(self.objectives) <= OBJECTIVES.keys():
            raise UserError(
                f"objectives must include ce and e2e_tv and be among {', '.join(OBJECTIVES)}, got "
                f"{', '.join(self.objectives)}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")


def bench_loss(bench: LossBench, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure every objective on every path; -> JSON-able figures (bytes, seconds, ratios)."""
    chains, weight_VH = synthetic_chains(bench)
    candidates = _candidates(bench)
    peaks: dict[str, int] = {}
    for label, loss in candidates.items():
        peaks[label] = peak_bytes(lambda loss=loss: _step(loss, chains, weight_VH), weight_VH.device)
        report(f"{label}: {peaks[label] / 2**20:.0f} MiB")
    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    for turn in range(bench.rounds):
        for label, loss in candidates.items():
            seconds[label].append(_seconds(lambda loss=loss: _step(loss, chains, weight_VH), weight_VH.device))
        report(f"round {turn + 1} of {bench.rounds} done")
    return {
        "bench": asdict(bench),
        "rows": bench.num_chains * bench.num_depths,
        "machine": machine(weight_VH.device),
        "peak_bytes": peaks,
        "seconds": {label: spread(values) for label, values in seconds.items()},
        "ratios": _ratios(peaks, {label: statistics.median(values) for label, values in seconds.items()}),
    }


def synthetic_chains(bench: LossBench) -> tuple[DraftChains, Tensor]:
    """Consecutive anchors of one sequence, a draft near its target, tokens from the target; -> chains, lm_head."""
    device, dtype = torch.device(bench.device), getattr(torch, bench.dtype)
    rng = torch.Generator(device=device).manual_seed(0)
    weight_VH = torch.randn(bench.vocabulary, bench.hidden, generator=rng, device=device)
    target_PH = torch.randn(bench.num_chains + bench.num_depths, bench.hidden, generator=rng, device=device)
    # Logits with a standard deviation of 4: entropies of a few nats, as a policy's.
    target_PH *= 4 / bench.hidden**0.5
    positions_NK = torch.arange(bench.num_chains, device=device)[:, None] + torch.arange(
        1, bench.num_depths + 1, device=device
    )
    draft_NKH = target_PH[positions_NK]
    draft_NKH = draft_NKH + 0.3 * draft_NKH.std() * torch.randn(draft_NKH.shape, generator=rng, device=device)
    tokens_P = torch.randint(bench.vocabulary, (len(target_PH),), generator=rng, device=device)
    chains = DraftChains(
        draft_states_NKH=draft_NKH.to(dtype),
        target_states_PH=target_PH.to(dtype),
        positions_NK=positions_NK,
        tokens_NK=tokens_P[positions_NK],
    )
    return chains, weight_VH.to(dtype)


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Highest number of tensor bytes alive during ``run`` beyond those alive before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    alive = highest = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            highest = max(highest, alive)
    return highest


def machine(device: torch.device) -> dict[str, Any]:
    """Where a figure was measured."""
    described: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["capability"] = list(torch.cuda.get_device_capability(device))
    return described


def eager_ce(chains: DraftChains, weight_VH: Tensor) -> Tensor:
    """Hard-label cross-entropy; touches no target logits and no acceptance."""
    logits_NKV = (chains.draft_states_NKH @ weight_VH.T).float()
    return cross_entropy(logits_NKV.flatten(0, 1), chains.tokens_NK.flatten())


def eager_e2e_tv(chains: DraftChains, weight_VH: Tensor) -> Tensor:
    """1 - mean over depths of the product of overlaps, target probabilities once per position."""
    with torch.no_grad():
        target_PV = (chains.target_states_PH @ weight_VH.T).float().softmax(-1)
    draft_NKV = (chains.draft_states_NKH @ weight_VH.T).float().softmax(-1)
    overlap_NK = torch.minimum(target_PV[chains.positions_NK], draft_NKV).sum(-1)
    return 1 - overlap_NK.cumprod(-1).mean()


def _candidates(bench: LossBench) -> dict[str, MeanLoss]:
    """Label -> what is measured."""
    device = torch.device(bench.device)
    fusion = fusion_for(device)
    if bench.logits_bytes is not None:
        fusion = replace(fusion, logits_bytes=bench.logits_bytes)
    found: dict[str, MeanLoss] = {"eager/ce": eager_ce, "eager/e2e_tv": eager_e2e_tv}
    found |= {f"fused/{name}": _fused(name, fusion) for name in bench.objectives}
    if not isinstance(fusion.kernels, ChunkedKernels):
        chunked = replace(fusion, kernels=ChunkedKernels(vocabulary_tile=2**16))
        found |= {f"chunked/{name}": _fused(name, chunked) for name in ("ce", "e2e_tv")}
    return found


def _fused(name: str, fusion: Fusion) -> MeanLoss:
    objective = OBJECTIVES[name]
    return lambda chains, weight_VH: fused_loss(chains, weight_VH, objective, fusion=fusion).mean


def _step(loss: MeanLoss, chains: DraftChains, weight_VH: Tensor) -> None:
    states_NKH = chains.draft_states_NKH.detach().requires_grad_()
    torch.autograd.grad(loss(replace(chains, draft_states_NKH=states_NKH), weight_VH), states_NKH)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def _ratios(peaks: Mapping[str, int], medians: Mapping[str, float]) -> dict[str, Any]:
    eager = [label.removeprefix("eager/") for label in peaks if label.startswith("eager/")]
    fused = [label.removeprefix("fused/") for label in peaks if label.startswith("fused/")]
    return {
        "peak_eager_over_fused": {name: peaks[f"eager/{name}"] / peaks[f"fused/{name}"] for name in eager},
        "time_fused_over_eager": {name: medians[f"fused/{name}"] / medians[f"eager/{name}"] for name in eager},
        "time_over_ce_fused": {name: medians[f"fused/{name}"] / medians["fused/ce"] for name in fused},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m bebop.bench.loss --json FILE``: measure and write the figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    defaults = LossBench()
    for name in ("num_chains", "num_depths", "hidden", "vocabulary", "rounds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=defaults.dtype)
    parser.add_argument("--device", default=defaults.device)
    parser.add_argument("--objectives", type=lambda names: tuple(names.split(",")), default=defaults.objectives)
    parser.add_argument("--json", type=Path, required=True)
    options = vars(parser.parse_args(arguments))
    path: Path = options.pop("json")
    path.write_text(json.dumps(bench_loss(LossBench(**options)), indent=2) + "\n")


if __name__ == "__main__":
    run_as_program(main)
