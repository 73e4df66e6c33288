"""How well a head drafts: rounds played by the engine, beside what its distributions promise along the same rollouts.

Names of figures, per task (``@k`` is depth k; R is a rule):

===============================  ====================================================================================
``R/acceptance_rate``            accepted / drafted tokens, played
``R/accept_length``              1 + accepted per round, played
``R/emitted_per_round``          tokens kept per round, played; a stop cuts the last round of a turn
``R/conditional@k``              rounds that accepted draft k / rounds that accepted all before it, played
``R/estimated_accept_length``    1 + expected accepted, mean over all anchors (docs/math.md)
``R/estimated_round_length``     the same, weighed by where rounds start: comparable with ``accept_length``
``R/estimated_emitted``          tokens / expected rounds: comparable with ``emitted_per_round``
``overlap@k``                    sum_v min(p, q), mean over anchors
``target_entropy``               nats per token
``draft_entropy@k``              nats
``prefers_rejection@k``          share of positions where TV(p, q) < 1 - p(argmax q)
``calibrated/...``               the estimates of rejection with one draft temperature per depth, chosen on every other
                                 episode, on the rest; ``uncalibrated/...``: without, on the same rest
===============================  ====================================================================================

Shapes: B rows, N chains, K depths, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bebop.core.chains import DraftChains
from bebop.core.matmul import project_logits
from bebop.engines.base import DraftStats
from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.models.policy import Policy
from bebop.runs import Mean
from bebop.tasks.chat import Transcript, chat_of
from bebop.tasks.episodes import EpisodePlan, EpisodeSettings, Rollout, run_episodes
from bebop.training.bootstrap import Tally
from bebop.training.chain_plan import plan_chains
from bebop.training.draft_loss import draft_chains, lm_head_weight
from bebop.training.hidden import HiddenSource, recomputed
from bebop.training.packing import packs
from bebop.training.samples import Sample
from bebop.training.teacher_forced import ChainFigures, Fate, Questions, chain_figures, round_starts


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSettings:
    """How drafts are made and judged."""

    questions: Questions
    num_drafts: int = 3
    rows: int = 32
    max_turn_tokens: int = 256
    thinking: bool | None = None
    """As in ``CollectConfig``."""
    batch_tokens: int = 4096
    """Tokens (with padding) that are unrolled at once."""
    logits_bytes: int = 1 << 28
    """Bound on the float64 distributions that are held at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutChains:
    """The chains of one rollout, in the order of their anchors."""

    anchors: list[int]
    is_whole_N: Tensor
    """Whether all K depths count."""
    figures: ChainFigures


def played(
    policy: Policy, rule: str, wanted: Sequence[EpisodePlan], settings: EvalSettings, show: Callable[[], None]
) -> list[Rollout]:
    """Rollouts drafted by the head and judged by ``rule``, in the order of ``wanted``."""
    chat = chat_of(policy.tokenizer, settings.thinking)
    options = EmbeddedOptions(rule=rule, num_draft_tokens=settings.num_drafts, max_rows=settings.rows)
    engine = EmbeddedEngine(policy, options)
    how = EpisodeSettings(sampling=settings.questions.sampling, max_turn_tokens=settings.max_turn_tokens)
    found: dict[str, Rollout] = {}
    for rollout in run_episodes(engine, chat, wanted, how):
        found[f"{rollout.plan.problem.id}/{rollout.plan.seed}"] = rollout
        show()
    engine.close()
    return [found[f"{plan.problem.id}/{plan.seed}"] for plan in wanted]


def played_tally(rule: str, drafts: DraftStats) -> Tally:
    """The figures of one episode's rounds."""
    accepted = drafts.num_accepted
    conditional = {
        f"{rule}/conditional@{depth}": Mean(total=passed, count=reached)
        for depth, (passed, reached) in enumerate(zip(drafts.accepted, drafts.reached, strict=True), start=1)
    }
    return {
        f"{rule}/acceptance_rate": Mean(total=accepted, count=drafts.num_drafted),
        f"{rule}/accept_length": Mean(total=drafts.rounds + accepted, count=drafts.rounds),
        f"{rule}/emitted_per_round": Mean(total=drafts.emitted, count=drafts.rounds),
        **conditional,
    }


def rollout_chains(policy: Policy, rollouts: Sequence[Rollout], settings: EvalSettings) -> list[RolloutChains]:
    """The head unrolled along every rollout, in their order."""
    samples = [
        Sample(id=str(number), transcript=Transcript(list(one.tokens), list(one.is_model)))
        for number, one in enumerate(rollouts)
    ]
    return sample_chains(policy, samples, recomputed(policy), settings)


@torch.no_grad()
def sample_chains(
    policy: Policy, samples: Sequence[Sample], hiddens: HiddenSource, settings: EvalSettings
) -> list[RolloutChains]:
    """The head unrolled along every sequence, which the policy itself must have sampled, in their order."""
    found: dict[str, RolloutChains] = {}
    for pack in packs(samples, settings.batch_tokens):
        plan = plan_chains(pack.batch.to(policy.device), settings.num_drafts)
        chains = draft_chains(policy, hiddens(pack), plan, "ttt")
        figures = joined(list(in_tiles(policy, chains, settings)))
        row_N, _ = (one.cpu() for one in plan.is_real_BA.nonzero(as_tuple=True))
        anchor_N = plan.anchors_BA[plan.is_real_BA].cpu()
        is_whole_N = plan.depth_mask_NK.all(-1).cpu()
        for one, place in zip(pack.members, pack.places, strict=True):
            end = place.start + one.num_tokens
            mine_N = (row_N == place.row) & (anchor_N >= place.start) & (anchor_N < end)
            found[one.id] = RolloutChains(
                anchors=anchor_N[mine_N].tolist(), is_whole_N=is_whole_N[mine_N], figures=figures.picked(mine_N)
            )
    return [found[one.id] for one in samples]


def in_tiles(policy: Policy, chains: DraftChains, settings: EvalSettings) -> Iterator[ChainFigures]:
    """Figures of some chains at a time, so that only so many logits exist."""
    weight_VH = lm_head_weight(policy)
    num_chains, num_depths = chains.tokens_NK.shape
    size = max(1, settings.logits_bytes // (8 * 8 * num_depths * len(weight_VH)))
    for start in range(0, max(1, num_chains), size):
        part = slice(start, start + size)
        target_NKH = chains.target_states_PH[chains.positions_NK[part]]
        yield chain_figures(
            logits_of(target_NKH, weight_VH),
            policy.hide_undrafted(logits_of(chains.draft_states_NKH[part], weight_VH)),
            chains.tokens_NK[part],
            settings.questions,
        )


def logits_of(states_NKH: Tensor, weight_VH: Tensor) -> Tensor:
    return project_logits(states_NKH.flatten(0, 1), weight_VH).unflatten(0, states_NKH.shape[:2])


def joined(parts: Sequence[ChainFigures]) -> ChainFigures:
    """Tiles back to back, on the CPU."""
    first = parts[0]
    return first.zipped(lambda tensors: torch.cat(tensors).cpu(), parts)


def estimated_tally(chains: RolloutChains) -> Tally:
    """What the distributions promise along one rollout."""
    figures, whole_N = chains.figures, chains.is_whole_N
    tally: dict[str, Mean] = {"target_entropy": mean_of(figures.target_entropy_NK[:, 0])}
    for name, values_NK in (
        ("overlap", figures.overlap_NK),
        ("draft_entropy", figures.draft_entropy_NK),
        ("prefers_rejection", figures.prefers_rejection_NK),
    ):
        tally |= {f"{name}@{k + 1}": mean_of(values_NK[whole_N, k]) for k in range(values_NK.shape[1])}
    for rule, fate in figures.fates.items():
        tally |= promised(rule, fate, chains)
    return tally


def promised(name: str, fate: Fate, chains: RolloutChains) -> Tally:
    """What a rule makes of the drafts along one rollout: per anchor, per round, and per emitted token."""
    whole_N, accepted_N = chains.is_whole_N, fate.accepted_NK.sum(-1)
    starts_N = starts_of_turns(chains.anchors, fate.alive_NK)
    weighed = ((1 + accepted_N) * starts_N)[whole_N].sum().item()
    return {
        f"{name}/estimated_accept_length": mean_of(1 + accepted_N[whole_N]),
        f"{name}/estimated_round_length": Mean(total=weighed, count=starts_N[whole_N].sum().item()),
        f"{name}/estimated_emitted": Mean(total=len(starts_N), count=starts_N.sum().item()),
    }


def starts_of_turns(anchors: Sequence[int], alive_NK: Tensor) -> Tensor:
    """Chance [N] that a round starts at each anchor; turns are runs of anchors without a gap."""
    cuts = [0, *(n for n in range(1, len(anchors)) if anchors[n] != anchors[n - 1] + 1), len(anchors)]
    turns = [round_starts(alive_NK[start:end]) for start, end in pairwise(cuts) if end > start]
    return torch.cat(turns) if turns else torch.zeros(0, dtype=torch.float64)


def mean_of(values: Tensor) -> Mean:
    return Mean(total=values.sum().item(), count=values.numel())
