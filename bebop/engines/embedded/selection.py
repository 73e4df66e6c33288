"""From hidden states to tokens: what is drafted, what stands, and what is recorded of it.

Rows are handled in chunks that fit into ``verify_memory``. Draft distributions are kept from drafting to verification
while they fit into ``draft_memory``; above it only the draft's hidden states are kept ([B, K, H], not [B, K, V]), and
the same call on the same chunk computes the distributions again, so that what verifies is what was sampled from.

Legend: B rows, b rows of a chunk, K draft tokens, J = K + 1, H hidden size, S tokens that may be drafted (all, as a
rule), V vocabulary.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from bebop.core.sampling import SamplingTensors, distribution, restrict, stack_sampling
from bebop.core.streams import RoundStreams
from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.clock import Phase, PhaseClock
from bebop.engines.embedded.draft_vocabulary import DraftVocabulary
from bebop.engines.embedded.options import EmbeddedOptions
from bebop.engines.embedded.rows import Block, Row
from bebop.engines.embedded.rules import Drafts, NoiseAt, rule_named


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """Rows ``start`` to ``stop`` and their settings."""

    start: int
    stop: int
    sampling: SamplingTensors

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A verified round. ``packed`` holds, per row, what the host takes over in one transfer (see ``blocks``)."""

    packed: Tensor
    num_drafts: list[int]

    def blocks(self) -> list[Block]:
        """Copy to the host and take apart; the one synchronisation of a round."""
        num_slots = max(self.num_drafts) + 1
        return [
            _unpack(values, num_slots, num_drafts)
            for values, num_drafts in zip(self.packed.tolist(), self.num_drafts, strict=True)
        ]


class Selector:
    """The choices of a fixed set of rows; made anew when the batch changes."""

    def __init__(
        self,
        backbone: Backbone,
        draft_vocabulary: DraftVocabulary | None,
        options: EmbeddedOptions,
        rows: list[Row],
        clock: PhaseClock,
    ) -> None:
        policy = backbone.policy
        self._device, self._vocabulary = policy.device, policy.config.vocab_size
        self._logits = backbone.logits
        self._few = draft_vocabulary
        self._options = options
        self._clock = clock
        self._rule = rule_named(options.rule)
        self._seed_B = torch.tensor([_seed(row.request.seed, row.index) for row in rows], device=policy.device)
        # Per row: logits, their restriction, target and draft probabilities, and a rule's noise, all float32.
        row_bytes = 4 * self._vocabulary * 5 * (options.draft_limit + 1)
        size = max(1, options.verify_memory // row_bytes)
        self._chunks = [
            _Chunk(start=i, stop=min(i + size, len(rows)), sampling=self._stack(rows[i : i + size]))
            for i in range(0, len(rows), size)
        ]
        draft_size = draft_vocabulary.size if draft_vocabulary else self._vocabulary
        self._keeps = options.draft_memory // (4 * draft_size * len(rows))
        self._position_B = self._seed_B
        self._num_drafts: list[int] = []
        self._length_B: Tensor | None = None
        self._probs_KBS: list[Tensor] = []
        self._output_KBH: list[Tensor] = []
        self._draft_KB: list[Tensor] = []
        self._streams: list[RoundStreams] = []
        self._noise: list[NoiseAt] = []
        """Of each chunk, for a round and for its drafts."""

    @property
    def num_drafts(self) -> int:
        """K of the round: the largest of any row."""
        return max(self._num_drafts)

    @property
    def draft_bytes(self) -> int:
        """Memory that the drafts of this round hold until they are verified."""
        return sum(t.numel() * t.element_size() for t in (*self._probs_KBS, *self._output_KBH))

    def begin(self, position_B: Tensor, num_drafts: list[int]) -> None:
        """A new round; row b's pending token is at ``position_B[b]`` and it drafts ``num_drafts[b]`` tokens."""
        self._position_B, self._num_drafts = position_B, num_drafts
        uniform = min(num_drafts) == max(num_drafts)
        self._length_B = None if uniform else torch.tensor(num_drafts, device=position_B.device)
        self._probs_KBS, self._output_KBH, self._draft_KB = [], [], []
        self._streams = [
            RoundStreams(seed_B=self._seed_B[chunk.rows], position_B=position_B[chunk.rows]) for chunk in self._chunks
        ]
        self._noise = []
        if self.num_drafts > 0:
            self._noise = [self._rule.noise(one, self.num_drafts, self._vocabulary) for one in self._streams]

    def choose(self, output_BH: Tensor, depth: int) -> Tensor:
        """Draft one token per row from what enters the lm_head."""
        keep = self.num_drafts <= self._keeps
        parts, probs = [], []
        for chunk, noise in zip(self._chunks, self._noise, strict=True):
            logits_bS = self._draft_logits(output_BH[chunk.rows])
            self._clock.lap(Phase.DRAFT)
            probs_bS = distribution(logits_bS, chunk.sampling)
            parts.append(self._propose(probs_bS, noise(depth)))
            if keep:
                probs.append(probs_bS)
        if keep:
            self._probs_KBS.append(_join(probs))
        else:
            self._output_KBH.append(output_BH)
        self._draft_KB.append(_join(parts))
        self._clock.lap(Phase.SAMPLING)
        return self._draft_KB[-1]

    def verify(self, hidden_BJH: Tensor) -> Outcome:
        """Judge the drafts by the target's hidden states over the pending token and the drafts."""
        draft_BK = (
            torch.stack(self._draft_KB, dim=1) if self._draft_KB else self._position_B.new_empty(len(hidden_BJH), 0)
        )
        pairs = zip(self._chunks, self._streams, strict=True)
        parts = [self._verify_chunk(hidden_BJH, draft_BK, chunk, streams) for chunk, streams in pairs]
        return Outcome(packed=_join(parts), num_drafts=self._num_drafts)

    def _verify_chunk(self, hidden_BJH: Tensor, draft_BK: Tensor, chunk: _Chunk, streams: RoundStreams) -> Tensor:
        logits_bJV = self._logits(hidden_BJH[chunk.rows])
        self._clock.lap(Phase.VERIFY)
        logits_bJV = logits_bJV.float()
        scaled_bJV = restrict(logits_bJV, chunk.sampling)
        target_bJV = scaled_bJV.softmax(dim=-1)
        draft_bKV = self._all_draft_probs(chunk, target_bJV)
        draft_bK = draft_BK[chunk.rows]
        lengths_b = self._length_B[chunk.rows] if self._length_B is not None else None
        verdict = self._rule.judge(Drafts(draft_bK, draft_bKV, lengths_b), target_bJV, streams)
        emitted_bJ = torch.cat([draft_bK, draft_bK.new_zeros(len(draft_bK), 1)], dim=1)
        # NaN logits can leave any index; such rows stop, and their tokens must still be in the vocabulary.
        next_b1 = verdict.next_token_B[:, None].clamp(0, target_bJV.shape[2] - 1)
        emitted_bJ = emitted_bJ.scatter(1, verdict.num_accepted_B[:, None], next_b1)
        logprob_bJ = target_bJV.gather(2, emitted_bJ[..., None])[..., 0].log()
        entropy_bJ = _entropy(scaled_bJV, target_bJV, emitted_bJ, logprob_bJ)
        raw_bJ = logprob_bJ
        if not _is_plain(chunk.sampling):
            raw_bJ = logits_bJV.gather(2, emitted_bJ[..., None])[..., 0] - logits_bJV.logsumexp(-1)
        draft_logprob_bK = draft_bKV.gather(2, emitted_bJ[:, :-1, None])[..., 0].log()
        overlap_bK = logprob_bJ[:, :0]
        if self._options.measure_overlap and draft_bK.shape[1] > 0:
            overlap_bK = self._rule.overlap(Drafts(draft_bK, draft_bKV, lengths_b), target_bJV[:, :-1])
        kept_bJ = torch.arange(emitted_bJ.shape[1], device=emitted_bJ.device) <= verdict.num_accepted_B[:, None]
        finite_b1 = (entropy_bJ.isfinite() | ~kept_bJ).all(dim=1, keepdim=True)
        counts = (verdict.num_accepted_B[:, None], finite_b1)
        columns = (*counts, emitted_bJ, logprob_bJ, raw_bJ, entropy_bJ, draft_logprob_bK, overlap_bK)
        return torch.cat([column.double() for column in columns], dim=1)

    def _draft_logits(self, output_bH: Tensor) -> Tensor:
        return self._few.logits(output_bH) if self._few else self._logits(output_bH)

    def _propose(self, probs_bS: Tensor, noise: Tensor) -> Tensor:
        propose = self._rule.propose
        return self._few.choose(propose, probs_bS, noise) if self._few else propose(probs_bS, noise)

    def _all_draft_probs(self, chunk: _Chunk, target_bJV: Tensor) -> Tensor:
        """[b, K, V], kept or computed again."""
        if not self._probs_KBS and not self._output_KBH:
            return target_bJV[:, :0]
        probs = [probs_BS[chunk.rows] for probs_BS in self._probs_KBS] or [
            distribution(self._draft_logits(output_BH[chunk.rows]), chunk.sampling) for output_BH in self._output_KBH
        ]
        probs_bKS = torch.stack(probs, dim=1)
        return self._few.spread(probs_bKS) if self._few else probs_bKS

    def _stack(self, rows: list[Row]) -> SamplingTensors:
        return stack_sampling([row.request.sampling for row in rows], self._device)


def _entropy(scaled_bJV: Tensor, target_bJV: Tensor, emitted_bJ: Tensor, logprob_bJ: Tensor) -> Tensor:
    """Entropy [b, J] in nats, where ``emitted_bJ`` has a chance: log Z - sum p z, with log Z from that token.

    A logarithm per token of the vocabulary would take three times as long as the softmax. Overwrites -inf in the logits
    with the lowest number: outside the support p is 0, and the product would be NaN.
    """
    log_z_bJ = scaled_bJV.gather(2, emitted_bJ[..., None])[..., 0] - logprob_bJ
    mean_bJ = torch.linalg.vecdot(scaled_bJV.clamp_(min=torch.finfo(scaled_bJV.dtype).min), target_bJV)
    return (log_z_bJ - mean_bJ).clamp_(min=0)


def _is_plain(sampling: SamplingTensors) -> bool:
    """Every row samples at temperature 1 from the whole vocabulary: raw and behaviour log-probs are one."""
    truncated = sampling.truncated_R.numel() > 0 or sampling.has_min_p
    return not (truncated or sampling.has_greedy or sampling.has_temperature)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _seed(seed: int, completion: int) -> int:
    """Key of a completion's streams: a 64-bit hash, so that neighbouring seeds and completions share nothing."""
    digest = hashlib.blake2b(f"{seed}:{completion}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _unpack(values: list[float], num_slots: int, num_drafts: int) -> Block:
    """A row's block out of: accepted, finite, then tokens, log-probs, raw log-probs, entropies (J each), draft
    log-probs and overlaps (K each, the latter perhaps absent)."""
    num_accepted = int(values[0])
    starts = range(2, 2 + 4 * num_slots, num_slots)
    tokens, logprobs, raw, entropies = (values[start : start + num_accepted + 1] for start in starts)
    num_judged = min(num_accepted + 1, num_drafts)
    drafted = 2 + 4 * num_slots
    return Block(
        tokens=[int(token) for token in tokens],
        logprobs=logprobs,
        raw_logprobs=raw,
        entropies=entropies,
        draft_logprobs=values[drafted : drafted + num_judged],
        overlaps=values[drafted + num_slots - 1 :][:num_judged],
        num_accepted=num_accepted,
        num_drafts=num_drafts,
        finite=bool(values[1]),
    )
