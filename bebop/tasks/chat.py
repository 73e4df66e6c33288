"""Chats as tokens: which tokens the policy wrote, and how an episode goes on without tokenising anything twice.

Every policy speaks the chat of its own template. A context is only ever appended to, so that the tokens a policy
sampled are the tokens it is trained on: a turn ends with the end-of-turn token, which the policy itself writes; what
follows it (tool results, the header of the next turn) is what the template writes between two turns. Where a template
has no such token, the mark of the next message's role is it. A template is not asked for a context as a whole, as many
rewrite earlier turns, most often by leaving their thoughts out.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bebop.errors import UserError
from bebop.tasks.base import Message, Role

THOUGHT_START, THOUGHT_END = "<think>", "</think>"
SWITCHES = ("enable_thinking", "thinking")
"""What templates call the variable that says whether the policy is to think."""
DAY = datetime.date(2024, 7, 26)
"""What Llama 3's template writes where it is told no date."""
REMEDY = "give sequences of your own as rows of tokens and is_model"

_GIVEN, _SAID = "Given0", "Said0"
"""Stand for messages where a template is only asked what it writes around them."""
_FOLLOWING: tuple[Role, ...] = ("user", "tool")
_ASKED = Message(role="user", content=_GIVEN)
_ANSWERED = Message(role="assistant", content=_SAID)


@dataclass(frozen=True, slots=True)
class Transcript:
    """A chat as tokens, with the policy's own marked."""

    tokens: list[int]
    is_model: list[bool]
    """True exactly on what the policy writes, its turns and their end-of-turn tokens, but for those that are not to be
    learned from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """How a tokenizer's template writes chats; made by ``chat_of``."""

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any] = field(default_factory=dict)
    """Variables that the template is given."""
    knows_system: bool = True
    """False: system messages stand at the head of the first user message."""
    knows_tools: bool = True
    """False: tool results come as user messages."""
    ends: Mapping[Role, int] = field(default_factory=dict)
    """The token that ends a turn of the policy, by the role that speaks next: ``user`` (also where nobody does) and
    ``tool``. One and the same in most templates."""
    opens_thought: bool = False
    """The header of a turn ends inside a thought."""
    closes_thought: bool = False
    """The header of a turn ends behind an empty thought."""
    no_thought: str = ""
    """What the policy writes at the start of a turn that has no thought."""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """What ends a turn: its end-of-turn tokens, or the end of all text, which some policies write instead."""
        eos = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*self.ends.values(), *([eos] if isinstance(eos, int) else [])]))

    def end_before(self, messages: Sequence[Message]) -> int:
        """The token that ends a turn of the policy which these messages follow."""
        (following,) = self._adapted(messages[:1] or [_ASKED])
        return self.ends.get(following.role, self.ends["user"])

    def open(self, messages: Iterable[Message]) -> list[int]:
        """Tokens of an opening, up to and with the header of the policy's turn."""
        return encode(self.tokenizer, self.render(messages))

    def go_on(self, messages: Sequence[Message], ended_by: int) -> list[int]:
        """Tokens to append to a turn of the policy: the environment's messages and the next turn's header.

        ``ended_by``: the turn's last token. Where it is not the mark of the role that speaks, that mark follows it.
        """
        tokens, end = encode(self.tokenizer, self.after_turn(messages)), self.end_before(messages)
        needs_mark = ended_by != end and len(set(self.ends.values())) > 1
        return tokens if needs_mark or tokens[:1] != [end] else tokens[1:]

    def transcript(self, messages: Sequence[Message], num_given: int = 0) -> Transcript:
        """A worked chat, tokenised turn by turn exactly as an episode would have produced it.

        ``num_given``: messages at its start that are given, turns of the policy among them included.
        """
        tokens: list[int] = []
        is_model: list[bool] = []
        pending: list[Message] = []
        for place, message in enumerate(messages):
            if message.role != "assistant" or place < num_given:
                pending.append(message)
                continue
            given = self.go_on(pending, tokens[-1]) if tokens else self.open(pending)
            end = self.end_before(messages[place + 1 :])
            written = [*encode(self.tokenizer, self.written(message.content)), end]
            tokens += given + written
            is_model += [False] * len(given) + [message.is_learned] * len(written)
            pending = []
        return Transcript(tokens, is_model)

    def said(self, text: str) -> str:
        """What a turn says once its thought is over; nothing if the thought has no end."""
        _, ended, after = text.rpartition(THOUGHT_END)
        if ended:
            return after.lstrip("\n")
        return "" if self.opens_thought or text.lstrip().startswith(THOUGHT_START) else text

    def written(self, content: str) -> str:
        """The text that the policy writes for a worked turn, whose thought, if it has one, stands in its content."""
        if self.closes_thought:
            content = self.said(content)
        if not content.startswith(THOUGHT_START):
            return self.no_thought + content
        return content.removeprefix(THOUGHT_START).removeprefix("\n") if self.opens_thought else content

    def after_turn(self, messages: Iterable[Message]) -> str:
        """What the template writes behind the text of a turn when these messages follow it."""
        return self.render([_ASKED, _ANSWERED, *messages]).partition(_SAID)[2].lstrip()

    def render(self, messages: Iterable[Message], *, with_header: bool = True) -> str:
        """The template's text; UserError where it refuses the messages."""
        adapted = [{"role": one.role, "content": one.content} for one in self._adapted(messages)]
        try:
            text = self.tokenizer.apply_chat_template(
                adapted, add_generation_prompt=with_header, tokenize=False, strftime_now=_strftime, **self.options
            )
        except (ValueError, TypeError, TemplateError) as error:
            roles = ", ".join(one["role"] for one in adapted) or "none"
            raise UserError(f"the tokenizer's chat template refuses messages of {roles} ({error}); {REMEDY}") from error
        assert isinstance(text, str)
        return text

    def _adapted(self, messages: Iterable[Message]) -> list[Message]:
        """The messages in roles that the template knows."""
        found = list(messages)
        if not self.knows_tools:
            found = [replace(one, role="user") if one.role == "tool" else one for one in found]
        if not self.knows_system:
            found = [replace(one, role="user") if one.role == "system" else one for one in found]
        if self.knows_tools and self.knows_system:
            return found
        grouped = [list(some) for _, some in groupby(found, key=lambda one: one.role)]
        return [replace(some[0], content="\n".join(one.content for one in some)) for some in grouped]


def chat_of(tokenizer: PreTrainedTokenizerBase | None, thinking: bool | None = None) -> Chat:
    """The chat of a policy with that tokenizer.

    ``thinking``: whether it is to think before it answers, where the template has a switch for that; None leaves it to
    the template. UserError where there is no tokenizer or template, or none that turns can be appended to.
    """
    if tokenizer is None:
        raise UserError(f"the policy has no tokenizer; add its tokenizer.json to the directory, or {REMEDY}")
    if not tokenizer.chat_template:
        raise UserError(f"the policy has no chat template; add its chat_template.jinja to the directory, or {REMEDY}")
    chat = _with_switch(Chat(tokenizer=tokenizer), thinking)
    chat = replace(chat, knows_system=_knows_system(chat))
    chat = replace(chat, knows_tools=_knows_tools(chat))
    return _with_thoughts(_with_end(chat))


def _with_switch(chat: Chat, thinking: bool | None) -> Chat:
    """The chat with thinking on or off; UserError where nothing in the template does that, or no thought is known."""
    if thinking is None:
        return chat
    for name in SWITCHES:
        on, off = (replace(chat, options={name: value}) for value in (True, False))
        if on.render([_ASKED]) != off.render([_ASKED]):
            if thinking and THOUGHT_START not in str(chat.tokenizer.chat_template):
                raise UserError(f"the policy's chat template marks no thoughts by {THOUGHT_START}; turn thinking off")
            return on if thinking else off
    raise UserError("thinking is set and the policy's chat template has no switch for it; leave it out")


def _knows_system(chat: Chat) -> bool:
    try:
        return _GIVEN in chat.render([Message(role="system", content=_GIVEN), Message(role="user", content="Hi")])
    except UserError:
        return False


def _knows_tools(chat: Chat) -> bool:
    """Whether the template writes tool results, and the header of the policy's turn behind them."""
    header = chat.render([_ASKED]).removeprefix(chat.render([_ASKED], with_header=False))
    try:
        written = chat.after_turn([Message(role="tool", content=_GIVEN)])
    except UserError:
        return False
    _, given, rest = written.partition(_GIVEN)
    return bool(given) and rest.endswith(header) and written != _as_system(chat)


def _as_system(chat: Chat) -> str | None:
    """What the template writes of a system message behind a turn, as some do of every role that they do not know."""
    try:
        return chat.after_turn([Message(role="system", content=_GIVEN)])
    except UserError:
        return None


def _with_end(chat: Chat) -> Chat:
    """The chat with its end-of-turn tokens; UserError where a template has none, or not behind every turn."""
    tokenizer = chat.tokenizer
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    last = chat.render([_ASKED, _ANSWERED], with_header=False).partition(_SAID)[2].lstrip()
    found: dict[Role, int | None] = {
        role: next(iter(encode(tokenizer, chat.after_turn([replace(_ASKED, role=role)]))), None) for role in _FOLLOWING
    }
    end = next(iter(encode(tokenizer, last)), found["user"])
    ends: dict[Role, int] = {role: token for role, token in found.items() if token is not None and token in added}
    if len(ends) < len(_FOLLOWING) or end != ends["user"]:
        raise UserError(
            f"the policy's chat template writes {last!r} behind a turn, and no token that ends it; add one to the "
            f"template, or {REMEDY}"
        )
    return replace(chat, ends=ends)


def _with_thoughts(chat: Chat) -> Chat:
    """The chat with what its template writes before a turn's text, beyond the header."""
    opening, whole = chat.render([_ASKED]), chat.render([_ASKED, _ANSWERED], with_header=False)
    opens_thought, closes_thought = (opening.rstrip().endswith(mark) for mark in (THOUGHT_START, THOUGHT_END))
    no_thought = f"\n{THOUGHT_END}\n\n" if opens_thought else ""
    if whole.startswith(opening):
        no_thought = whole.removeprefix(opening).partition(_SAID)[0]
    return replace(chat, opens_thought=opens_thought, closes_thought=closes_thought, no_thought=no_thought)


def _strftime(format: str) -> str:
    """The date that dated templates are given: prompts are the same on every day."""
    return DAY.strftime(format)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a turn, special tokens included."""
    text = tokenizer.decode(list(tokens))
    assert isinstance(text, str)
    return text
