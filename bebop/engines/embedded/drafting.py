"""Drafting with the policy's MTP head, attention layout ``ttt`` (docs/math.md).

The head's cache holds, at every settled position i, the keys of (target hidden h_i, embedding of token i+1). Deeper
drafts append provisional keys made from the head's own output; the next draft starts with a *rebuild* of the positions
settled since, from the target's hidden states, which overwrites them. Hidden states wait in a small store per row until
then, so rounds without drafts cost the head nothing and drafting can resume at any time.

Legend: B rows, S slots, R rows of a prefill, T positions, W width of a rebuild, H hidden size, K draft tokens.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bebop.engines.embedded.attention import additive_mask
from bebop.engines.embedded.backbone import KEY_MULTIPLE, aligned
from bebop.engines.embedded.cache import PrefillCache, SlotCache, allocate
from bebop.engines.embedded.draft_head import DraftHead, HeadInput
from bebop.engines.embedded.draft_vocabulary import DraftVocabulary
from bebop.engines.embedded.lean import can_be_lean
from bebop.engines.embedded.lean_head import LeanHead
from bebop.engines.embedded.module_head import ModuleHead
from bebop.models.head import HeadState, MTPHead
from bebop.models.policy import Policy

STORE_WIDTH = 32
"""Hidden states a row can have waiting; a row with more is rebuilt without drafting."""

ChooseToken = Callable[[Tensor, int], Tensor]
"""(what enters the lm_head [B, H], depth from 0) -> the drafted tokens [B]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The settled positions of each row that the head has not seen; every row has at least one.

    Row b has ``counts_B[b]`` of them, from ``first_B[b]`` on; ``tokens_BW`` are the tokens one after each. ``width`` is
    the largest count and ``longest`` one more than the last position of any row.
    """

    tokens_BW: Tensor
    first_B: Tensor
    counts_B: Tensor
    width: int
    longest: int


class Drafter:
    """The head, its cache, and the hidden states that wait for it."""

    def __init__(
        self,
        policy: Policy,
        head: MTPHead,
        num_slots: int,
        *,
        vocabulary: DraftVocabulary | None = None,
        lean: bool = True,
    ) -> None:
        self.policy = policy
        self.head = head
        self.vocabulary = vocabulary
        """None where the head may draft every token."""
        self.cache = SlotCache(num_slots)
        self._dtype = policy.dtype
        like = torch.empty(0, dtype=policy.dtype, device=policy.device)
        self._waiting_SWH = allocate((num_slots, STORE_WIDTH, policy.config.hidden_size), like)
        self._run_head = _draft_head(policy, head, lean=lean)
        self._num_groups = head.config.num_attention_heads // head.config.num_key_value_heads

    def refresh(self) -> None:
        """The policy's weights may have changed: take over what was copied of them."""
        self._run_head.refresh()
        if self.vocabulary is not None:
            self.vocabulary.refresh()

    @property
    def num_bytes(self) -> int:
        """Memory of the cache and of the waiting hidden states."""
        return self.cache.num_bytes + self._waiting_SWH.numel() * self._waiting_SWH.element_size()

    def prefill(self, hidden_RTH: Tensor, next_tokens_RT: Tensor) -> PrefillCache:
        """The head's keys over right-padded prompts; ``next_tokens_RT`` are the tokens one after each position."""
        cache = PrefillCache()
        positions_RT = torch.arange(hidden_RTH.shape[1], device=hidden_RTH.device).expand(hidden_RTH.shape[0], -1)
        embeds_RTH = self.policy.embed(next_tokens_RT)
        self._run_head.remember(HeadInput(hidden_RTH, embeds_RTH, positions_RT), hidden_RTH.shape[1], cache)
        return cache

    def keep(self, hidden_BTH: Tensor, num_waiting_B: Tensor) -> None:
        """Store a window's hidden states of slots 0..B-1 behind the ``num_waiting_B`` that already wait."""
        num_rows, num_new, size = hidden_BTH.shape
        starts_B = torch.arange(num_rows, device=hidden_BTH.device) * STORE_WIDTH + num_waiting_B
        index_N = (starts_B[:, None] + torch.arange(num_new, device=hidden_BTH.device)).reshape(-1)
        self._waiting_SWH.view(-1, size).index_copy_(0, index_N, hidden_BTH.reshape(-1, size))

    def keep_first(self, slots: list[int], hidden_RWH: Tensor) -> None:
        """Let hidden states wait in freshly filled slots."""
        self._waiting_SWH[slots, : hidden_RWH.shape[1]] = hidden_RWH

    def waiting_of(self, slot: int, num_waiting: int) -> Tensor:
        """A copy of a slot's hidden states that wait, [1, W, H]."""
        return self._waiting_SWH[slot : slot + 1, :num_waiting].clone()

    def apart(self, num_slots: int) -> "Drafter":
        """The same head over a cache of its own, no larger than what is reserved; nothing waits in it."""
        other = copy.copy(self)
        other.cache = SlotCache(num_slots, chunk=KEY_MULTIPLE)
        return other

    def settle(self, hidden_RTH: Tensor, tokens_RT: Tensor, first_R: Tensor, longest: int) -> None:
        """Cache the head's keys at T positions from ``first_R`` on; ``tokens_RT`` are the tokens one after each.

        ``longest`` is one more than the last position of any row.
        """
        positions_RT = first_R[:, None] + torch.arange(hidden_RTH.shape[1], device=first_R.device)
        self.cache.begin(positions_RT, aligned(longest, self.cache.capacity))
        embeds_RTH = self.policy.embed(tokens_RT)
        self._run_head.remember(HeadInput(hidden_RTH, embeds_RTH, positions_RT), self.cache.capacity, self.cache)

    def draft(self, waiting: Waiting, num_drafts: int, choose: ChooseToken) -> Tensor:
        """Rebuild what waits, then draft; returns tokens [B, K] (nothing is chosen at K = 0)."""
        state = self._rebuild(waiting)
        anchors_B1 = (waiting.first_B + waiting.counts_B - 1)[:, None]
        chain_BK = anchors_B1 + torch.arange(1, max(num_drafts, 1), device=anchors_B1.device)
        num_keys = aligned(waiting.longest + num_drafts - 1, self.cache.capacity)
        masks = self._mask(chain_BK[..., None].flatten(0, 1), num_keys)
        masks = masks.view(*chain_BK.shape, *masks.shape[1:])
        drafts: list[Tensor] = []
        for depth in range(num_drafts):
            # A head that diverged must not reach the target: any finite draft is verified exactly.
            drafts.append(choose(state.output_BTH[:, 0].nan_to_num(), depth))
            if depth + 1 < num_drafts:
                self.cache.begin(chain_BK[:, depth, None], num_keys)
                state = self._step(state.recycle_BTH, drafts[-1], chain_BK[:, depth, None], masks[:, depth])
        return torch.stack(drafts, dim=1) if drafts else anchors_B1[:, :0]

    def move(self, source: int, target: int) -> None:
        """Overwrite slot ``target`` with slot ``source``."""
        self.cache.move(source, target)
        self._waiting_SWH[target] = self._waiting_SWH[source]

    def clear(self, slot: int) -> None:
        """Forget a slot's content."""
        self.cache.clear(slot)
        self._waiting_SWH[slot] = 0

    def _rebuild(self, waiting: Waiting) -> HeadState:
        """Run what waits; -> the state [B, 1, H] of each row's last position."""
        num_rows, device = waiting.first_B.shape[0], waiting.first_B.device
        hidden_BWH = self._waiting_SWH[:num_rows, : waiting.width]
        positions_BW = waiting.first_B[:, None] + torch.arange(waiting.width, device=device)
        num_keys = aligned(waiting.longest + waiting.width - 1, self.cache.capacity)
        self.cache.begin(positions_BW, num_keys)
        embeds_BWH = self.policy.embed(waiting.tokens_BW)
        last_B = waiting.counts_B - 1
        last_N = torch.arange(num_rows, device=device) * waiting.width + last_B
        mask = self._mask((waiting.first_B + last_B)[:, None], num_keys)
        return self._run_head(HeadInput(hidden_BWH, embeds_BWH, positions_BW), mask, self.cache, last_N)

    def _step(self, hidden_B1H: Tensor, tokens_B: Tensor, positions_B1: Tensor, mask: Tensor) -> HeadState:
        embeds_B1H = self.policy.embed(tokens_B[:, None])
        return self._run_head(HeadInput(hidden_B1H, embeds_B1H, positions_B1), mask, self.cache)

    def _mask(self, positions_BT: Tensor, num_keys: int) -> Tensor:
        return additive_mask(positions_BT, num_keys, self._num_groups, self._dtype)


def _draft_head(policy: Policy, head: MTPHead, *, lean: bool) -> DraftHead:
    """The lean form of a head, where its layer has one and it is wanted."""
    if lean and isinstance(head, MTPHead) and can_be_lean(head.layer, policy.dtype):
        return LeanHead(head, policy.dtype, policy.device)
    return ModuleHead(head, policy.dtype)
