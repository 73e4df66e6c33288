"""Every policy speaks the chat of its own template, and contexts are only ever appended to.

The templates are short forms of those that policies come with: what they write around messages is theirs.
"""

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bebop.errors import UserError
from bebop.models.tiny import tiny_path
from bebop.tasks.base import Message, Split
from bebop.tasks.chat import Chat, chat_of, decode, encode
from bebop.tasks.registry import load_task

THINKING = r"""
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{{- m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '\n</think>\n\n' }}{% endif %}{% endif %}"""

HEADERS = """
{%- for m in messages %}
{%- if loop.first %}<|begin_of_text|>{% endif %}
{%- if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{{ m.content | tojson }}<|eot_id|>
{%- else %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

ALTERNATING = """
{%- for m in messages %}
{%- if loop.first %}<s>{% endif %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role not in ['user', 'assistant'] %}
{{- raise_exception('roles must alternate user and assistant') }}{% endif %}
{%- if m.role == 'user' %}[INST] {{ m.content }} [/INST]
{%- else %} {{ m.content }}</s>{% endif %}{% endfor %}"""

WITHOUT_END = """
{%- for m in messages %}<|{{ m.role }}|>
{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

ROLE_MARKS = r"""[gMASK]<sop>
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|observation|>' }}{% endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- elif m.role == 'assistant' %}
{{- '<|assistant|>\n<think></think>\n' + m.content.split('</think>')[-1].strip() }}
{%- else %}{{- '<|' + m.role + '|>\n' + m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '\n<think></think>' }}{% endif %}{% endif %}"""

OPENING = (Message(role="system", content="Tools: ls()."), Message(role="user", content="How many files?"))
RESULTS = (Message(role="tool", content="a b"), Message(role="tool", content="2"))


MARKS = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<s>", "</s>")
ROLES = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def with_template(template: str | None, marks: tuple[str, ...] = MARKS) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    tokenizer.chat_template = template
    return tokenizer


def texts(chat: Chat) -> tuple[str, str]:
    """The opening, and what follows a turn of the policy."""
    opening, then = chat.open(OPENING), chat.go_on(RESULTS, chat.ends["tool"])
    return decode(chat.tokenizer, opening), decode(chat.tokenizer, then)


def end_of(chat: Chat) -> str:
    """The text of the token that ends every turn."""
    (end,) = set(chat.ends.values())
    return decode(chat.tokenizer, [end])


def test_a_policy_that_thinks_is_given_what_its_template_writes_and_graded_on_what_it_says() -> None:
    chat = chat_of(with_template(THINKING))
    opening, then = texts(chat)
    header = "<|im_start|>assistant\n<think>\n"
    assert (
        opening == f"<|im_start|>system\nTools: ls().<|im_end|>\n<|im_start|>user\nHow many files?<|im_end|>\n{header}"
    )
    results = "".join(f"\n<tool_response>\n{one.content}\n</tool_response>" for one in RESULTS)
    assert then == f"\n<|im_start|>user{results}<|im_end|>\n{header}"
    assert end_of(chat) == "<|im_end|>" and chat.opens_thought
    assert chat.said("Two of them.\n</think>\n\nAnswer: 2") == "Answer: 2"
    assert chat.said("Answer: 2, I think") == "", "a thought without an end says nothing"


def test_a_policy_can_be_told_not_to_think() -> None:
    chat = chat_of(with_template(THINKING), thinking=False)
    opening, then = texts(chat)
    header = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert opening.endswith(header) and then.endswith(header)
    assert not chat.opens_thought and chat.no_thought == ""
    assert chat.said("Answer: 2") == "Answer: 2"
    assert chat_of(with_template(THINKING), thinking=True).opens_thought
    with pytest.raises(UserError, match="no switch for it"):
        chat_of(with_template(HEADERS), thinking=False)


@pytest.mark.parametrize(
    ("thinking", "content", "written"),
    [
        (None, "Answer: 2", "\n</think>\n\nAnswer: 2"),
        (None, "<think>\nTwo.\n</think>\n\nAnswer: 2", "Two.\n</think>\n\nAnswer: 2"),
        (False, "Answer: 2", "Answer: 2"),
        (False, "<think>\nTwo.\n</think>\n\nAnswer: 2", "Answer: 2"),
    ],
)
def test_worked_turns_continue_the_header(thinking: bool | None, content: str, written: str) -> None:
    chat = chat_of(with_template(THINKING), thinking)
    made = chat.transcript([*OPENING, Message(role="assistant", content=content), *RESULTS, OPENING[1]])
    mine = [token for token, is_model in zip(made.tokens, made.is_model, strict=True) if is_model]
    assert chat.tokenizer.decode(mine) == written + "<|im_end|>"
    assert made.tokens[: -len(mine)] == chat.open(OPENING), "what follows the last turn is left out"


def test_other_templates_have_marks_and_roles_of_their_own() -> None:
    chat = chat_of(with_template(HEADERS))
    opening, then = texts(chat)
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert opening.startswith("<|begin_of_text|><|start_header_id|>system") and opening.endswith(header)
    assert (
        then
        == "".join(
            f"<|start_header_id|>ipython<|end_header_id|>\n\n{json.dumps(one.content)}<|eot_id|>" for one in RESULTS
        )
        + header
    )
    assert end_of(chat) == "<|eot_id|>"
    assert chat.stop_tokens == (chat.ends["user"], chat.tokenizer.eos_token_id), "some policies end the text instead"
    assert chat_of(with_template(THINKING)).stop_tokens == (chat.tokenizer.eos_token_id,)


def test_system_messages_and_tool_results_become_a_users_where_a_template_refuses_them() -> None:
    chat = chat_of(with_template(ALTERNATING))
    assert (chat.knows_system, chat.knows_tools) == (False, False)
    opening, then = texts(chat)
    assert opening == "<s>[INST] Tools: ls().\nHow many files? [/INST]"
    assert then == "[INST] a b\n2 [/INST]"
    assert end_of(chat) == "</s>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template; add its chat_template.jinja"),
        (WITHOUT_END, "no token that ends it"),
        ("{{ raise_exception('not today') }}", "refuses messages of user .not today."),
        ("{{ messages[0]['content'] }}", "no token that ends it"),
    ],
)
def test_a_template_that_turns_cannot_be_appended_to_is_refused_with_a_way_out(template, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        chat_of(with_template(template))
    assert "rows of tokens and is_model" in str(raised.value)
    with pytest.raises(UserError, match="no tokenizer"):
        chat_of(None)


def test_where_the_next_roles_mark_ends_a_turn_the_policy_writes_that_mark() -> None:
    """As in GLM-4.5, whose turns end with the user's mark, or with that of tool results."""
    chat = chat_of(with_template(ROLE_MARKS, ROLES))
    mark = {name: chat.tokenizer.convert_tokens_to_ids(name) for name in ROLES}
    assert chat.ends == {"user": mark["<|user|>"], "tool": mark["<|observation|>"]}
    assert chat.stop_tokens == (*chat.ends.values(), chat.tokenizer.eos_token_id)
    opening, then = texts(chat)
    assert opening == "[gMASK]<sop><|system|>\nTools: ls().<|user|>\nHow many files?<|assistant|>"
    results = "".join(f"\n<tool_response>\n{one.content}\n</tool_response>" for one in RESULTS)
    assert then == f"{results}<|assistant|>"
    for ended_by in (mark["<|user|>"], chat.tokenizer.eos_token_id):
        after = chat.tokenizer.decode(chat.go_on(RESULTS, ended_by))
        assert after == f"<|observation|>{then}", "a turn that ended otherwise is followed by the right mark"

    call, answer = (Message(role="assistant", content=text) for text in ("ls()", "Answer: 2"))
    made = chat.transcript([*OPENING, call, *RESULTS, answer, *OPENING[1:], answer])
    turns = ("\n<think></think>\nls()<|observation|>", *["\n<think></think>\nAnswer: 2<|user|>"] * 2)
    written = [token for token, is_model in zip(made.tokens, made.is_model, strict=True) if is_model]
    assert chat.tokenizer.decode(written) == "".join(turns)
    asked = "\nHow many files?<|assistant|>"
    assert chat.tokenizer.decode(made.tokens) == opening + turns[0] + then + turns[1] + asked + turns[2]


def test_a_policy_with_role_marks_can_be_told_not_to_think() -> None:
    chat = chat_of(with_template(ROLE_MARKS, ROLES), thinking=False)
    assert texts(chat)[0].endswith("<|assistant|>\n<think></think>")
    assert chat.written("Answer: 2") == "\nAnswer: 2"


@pytest.mark.parametrize(
    ("template", "marks"), [(THINKING, MARKS), (HEADERS, MARKS), (ALTERNATING, MARKS), (ROLE_MARKS, ROLES)]
)
def test_a_transcript_is_what_an_episode_would_have_made(template: str, marks: tuple[str, ...]) -> None:
    chat = chat_of(with_template(template, marks))
    task = load_task("agent")
    messages = task.demonstration(task.problem(Split.TRAIN, 1), 0)
    first = next(place for place, one in enumerate(messages) if one.role == "assistant")
    tokens = chat.open(messages[:first])
    for message, answer in zip(messages[first:-1:2], messages[first + 1 :: 2], strict=True):
        tokens += [*encode(chat.tokenizer, chat.written(message.content)), chat.end_before([answer])]
        tokens += chat.go_on([answer], tokens[-1])
    tokens += [*encode(chat.tokenizer, chat.written(messages[-1].content)), chat.end_before([])]
    assert tokens == chat.transcript(messages).tokens


def test_a_switch_is_one_that_changes_something_and_thoughts_have_marks_that_are_known() -> None:
    with pytest.raises(UserError, match="no switch for it"):
        chat_of(with_template("{# no thinking here #}" + HEADERS), thinking=False)
    other = THINKING.replace("<think>", "<|channel>").replace("</think>", "<channel|>")
    assert not chat_of(with_template(other), thinking=False).opens_thought
    with pytest.raises(UserError, match="marks no thoughts by <think>"):
        chat_of(with_template(other), thinking=True)


def test_dated_templates_write_the_same_on_every_day() -> None:
    dated = HEADERS.replace("{{ m.content | trim }}", "{{ strftime_now('%d %b %Y') }} {{ m.content | trim }}")
    chat = chat_of(with_template(dated))
    assert "26 Jul 2024 How many files?" in chat.tokenizer.decode(chat.open(OPENING))


def test_tool_results_are_a_users_where_every_unknown_role_is_a_systems() -> None:
    others = HEADERS.replace("m.role == 'tool'", "false").replace(
        "{{ m.role }}", "{{ m.role if m.role in ['user', 'assistant'] else 'system' }}"
    )
    chat = chat_of(with_template(others))
    assert (chat.knows_system, chat.knows_tools) == (True, False)
    assert texts(chat)[1].startswith("<|start_header_id|>user<|end_header_id|>\n\na b\n2")


def test_turns_that_are_given_are_not_learned() -> None:
    chat = chat_of(with_template(THINKING), thinking=False)
    shown = Message(role="assistant", content="Answer: 1")
    made = chat.transcript([OPENING[1], shown, OPENING[1], shown], num_given=3)
    mine = [token for token, is_model in zip(made.tokens, made.is_model, strict=True) if is_model]
    assert chat.tokenizer.decode(mine) == "Answer: 1<|im_end|>"
    assert made.tokens[: -len(mine)] == chat.open([OPENING[1], shown, OPENING[1]])
