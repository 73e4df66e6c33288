"""Contexts that are kept for the requests to come: recent prompts, and conversations that may go on.

The store is bounded in bytes. It drops prompts first, then conversations, those unused longest first; what it
has dropped is computed again.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from bebop.engines.embedded.prefilled import Prefilled

_MAX_PROMPTS = 16
"""Prompts to keep: the attempts of a group follow one another, so few are asked for again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptContext:
    """A conversation's tokens, all but the last of which are in the cache."""

    tokens: tuple[int, ...]
    prefilled: Prefilled


class Contexts:
    """What is kept, within ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prompts: OrderedDict[tuple[int, ...], Prefilled] = OrderedDict()
        self._conversations: OrderedDict[str, KeptContext] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept; rows of one prefill share theirs, which stays until the last of them is dropped."""
        kept = (*self._prompts.values(), *(one.prefilled for one in self._conversations.values()))
        return sum({id(one.batch): one.batch.num_bytes for one in kept if one.batch is not None}.values())

    def prompt(self, tokens: tuple[int, ...]) -> Prefilled | None:
        """The prefill of a prompt, if it is kept."""
        if tokens in self._prompts:
            self._prompts.move_to_end(tokens)
        return self._prompts.get(tokens)

    def keep_prompt(self, tokens: tuple[int, ...], prefilled: Prefilled) -> None:
        self._prompts[tokens] = prefilled
        if len(self._prompts) > _MAX_PROMPTS:
            self._prompts.popitem(last=False)
        self._shrink()

    def keep_conversation(self, request_id: str, tokens: Sequence[int], prefilled: Prefilled) -> None:
        self._conversations[request_id] = KeptContext(tokens=tuple(tokens), prefilled=prefilled)
        self._shrink()

    def take_conversation(self, request_id: str, prompt: tuple[int, ...]) -> KeptContext | None:
        """The context that this prompt begins with, which leaves the store; None if it is not there, or another."""
        kept = self._conversations.pop(request_id, None)
        return kept if kept is not None and prompt[: len(kept.tokens)] == kept.tokens else None

    def forget_prompts(self) -> None:
        self._prompts.clear()

    def forget_conversations(self) -> None:
        self._conversations.clear()

    def _shrink(self) -> None:
        while self.num_bytes > self._max_bytes:
            (self._prompts or self._conversations).popitem(last=False)
