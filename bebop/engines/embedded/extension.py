"""Running what a prompt adds to a context that is kept: one window over caches of its own.

Legend: R rows, T new positions, X positions that the head has not settled, H hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bebop.engines.embedded.backbone import Backbone
from bebop.engines.embedded.contexts import KeptContext
from bebop.engines.embedded.drafting import Drafter
from bebop.engines.embedded.prefilled import PrefilledBatch, fill

Tokens = tuple[int, ...]


def num_new_tokens(context: KeptContext, prompt: Tokens) -> int:
    """Tokens of the prompt that are not in the cache of the context it continues, but for its last."""
    return len(prompt) - len(context.tokens)


def extend(
    backbone: Backbone, drafter: Drafter | None, going_on: Sequence[tuple[KeptContext, Tokens]]
) -> PrefilledBatch:
    """The prompts, all but their last tokens, from the contexts they continue; each adds at least one token."""
    num_cached = [len(context.tokens) - 1 for context, _ in going_on]
    num_new = [num_new_tokens(context, prompt) for context, prompt in going_on]
    width = max(num_new)
    longest = max(num_cached) + width
    # The window's padding may reach beyond what any prompt needs, and beyond the slots that the rows are copied into.
    num_kept = max(len(prompt) - 1 for _, prompt in going_on)
    prefilled = [context.prefilled for context, _ in going_on]
    backbone, drafter = backbone.apart(len(going_on)), drafter and drafter.apart(len(going_on))
    backbone.reserve(longest)
    if drafter is not None:
        drafter.cache.reserve(longest)
    for slot, one in enumerate(prefilled):
        fill(backbone, None, [slot], [one])

    device = backbone.policy.device
    new = [prompt[start : start + width] for start, (_, prompt) in zip(num_cached, going_on, strict=True)]
    tokens_RT = torch.tensor([tokens + tokens[-1:] * (width - len(tokens)) for tokens in new], device=device)
    first_R = torch.tensor(num_cached, device=device)
    hidden = backbone.window(tokens_RT, first_R[:, None] + torch.arange(width, device=device), longest)
    backbone.commit(num_new)
    last_RH = hidden.draft_BTH[torch.arange(len(going_on), device=device), torch.tensor(num_new, device=device) - 1]
    head = None
    if drafter is not None:
        _settle(drafter, going_on, hidden.draft_BTH, longest)
        head = drafter.cache.rows(num_kept)
    return PrefilledBatch(backbone=backbone.rows(num_kept), head=head, waiting_RWH=last_RH[:, None])


def _settle(drafter: Drafter, going_on: Sequence[tuple[KeptContext, Tokens]], hidden_RTH: Tensor, longest: int) -> None:
    """Cache the head's keys at the positions that waited when the context was kept and at the new ones."""
    states: list[Tensor] = []
    tokens: list[Tokens] = []
    first: list[int] = []
    for row, (context, prompt) in enumerate(going_on):
        batch = context.prefilled.batch
        assert batch is not None and batch.head is not None, "contexts are kept after at least one position"
        drafter.cache.fill([row], batch.head, [context.prefilled.row])
        waiting_WH = batch.waiting_RWH[context.prefilled.row]
        start, end = len(context.tokens) - 1 - len(waiting_WH), len(prompt) - 1
        states.append(torch.cat([waiting_WH, hidden_RTH[row, : num_new_tokens(context, prompt)]]))
        tokens.append(prompt[start + 1 : end + 1])
        first.append(start)
    width = max(map(len, tokens))
    hidden_RXH = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    padded = [one + one[-1:] * (width - len(one)) for one in tokens]
    device = hidden_RTH.device
    end_of_padding = max(start + width for start in first)
    drafter.cache.reserve(max(longest, end_of_padding))
    drafter.settle(hidden_RXH, torch.tensor(padded, device=device), torch.tensor(first, device=device), end_of_padding)
