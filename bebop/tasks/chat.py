"""Chats as tokens: which tokens the policy wrote, and how an episode goes on without tokenising anything twice.

The format is ChatML. A turn of the policy ends with the end-of-turn token, which the policy itself writes; what follows
it (a line break, tool results, the header of the next turn) belongs to the environment. A context is only ever
appended to, so that the tokens a policy sampled are the tokens it is trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bebop.errors import UserError
from bebop.tasks.base import Message

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
HEADER = f"{TURN_START}assistant\n"


@dataclass(frozen=True, slots=True)
class Transcript:
    """A chat as tokens, with the policy's own marked."""

    tokens: list[int]
    is_model: list[bool]
    """True exactly on what the policy writes: its turns and their end-of-turn tokens."""


def open_prompt(tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]) -> list[int]:
    """Tokens of an opening, up to and with the header of the policy's turn."""
    return encode(tokenizer, "".join(map(render, messages)) + HEADER)


def continue_prompt(tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]) -> list[int]:
    """Tokens to append after the policy's end-of-turn: the environment's messages and the header of the next turn."""
    return encode(tokenizer, "\n" + "".join(map(render, messages)) + HEADER)


def transcript(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Transcript:
    """A worked chat, tokenised turn by turn exactly as an episode would have produced it."""
    tokens: list[int] = []
    is_model: list[bool] = []
    pending: list[Message] = []
    opener = partial(open_prompt, tokenizer)
    for message in messages:
        if message.role != "assistant":
            pending.append(message)
            continue
        given, written = opener(pending), encode(tokenizer, message.content + TURN_END)
        tokens += given + written
        is_model += [False] * len(given) + [True] * len(written)
        pending, opener = [], partial(continue_prompt, tokenizer)
    return Transcript(tokens, is_model)


def chat_tokenizer(tokenizer: PreTrainedTokenizerBase | None, policy: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the policy of that name; UserError where there is none, or the tasks cannot speak its chat."""
    if tokenizer is None:
        raise UserError(f"the policy {policy} has no tokenizer; add its tokenizer.json to the directory")
    check_chat_format(tokenizer)
    return tokenizer


def check_chat_format(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless the tokenizer's own chat template is the ChatML written here and its marks are tokens."""
    remedy = "give the policy a plain ChatML template, or give sequences of your own as rows of tokens and is_model"
    messages = [Message(role="system", content="s"), Message(role="user", content="u")]
    as_template = [{"role": one.role, "content": one.content} for one in messages]
    try:
        theirs = tokenizer.apply_chat_template(as_template, add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError) as error:
        raise UserError(
            f"the tokenizer's chat template does not render a system and a user message ({error}); {remedy}"
        ) from error
    ours = "".join(map(render, messages)) + HEADER
    if theirs != ours:
        raise UserError(f"the tokenizer's chat template renders {theirs!r} where the tasks write {ours!r}; {remedy}")
    if len(encode(tokenizer, TURN_END)) != 1:
        raise UserError(f"{TURN_END} is no single token of the tokenizer, so that turns have no end; {remedy}")


def render(message: Message) -> str:
    return f"{TURN_START}{message.role}\n{message.content}{TURN_END}\n"


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a turn, special tokens included."""
    text = tokenizer.decode(list(tokens))
    assert isinstance(text, str)
    return text


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a turn of the policy."""
    token = tokenizer.convert_tokens_to_ids(TURN_END)
    assert isinstance(token, int)
    return token
