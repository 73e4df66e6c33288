"""Transcripts become tokens turn by turn, with the policy's own marked, and batches lose none of them."""

import json

import pytest
from transformers import AutoTokenizer

from bebop.errors import UserError
from bebop.models.tiny import tiny_path
from bebop.tasks.base import Message, Split
from bebop.tasks.chat import Chat, chat_of
from bebop.tasks.registry import load_task
from bebop.training.transcripts import file_transcripts, micro_batches, read_chats, task_transcripts


@pytest.fixture(scope="module")
def chat() -> Chat:
    return chat_of(AutoTokenizer.from_pretrained(tiny_path()))


def test_a_transcript_is_the_rendered_chat_and_marks_the_models_turns(chat):
    messages = load_task("agent").demonstration(load_task("agent").problem(Split.TRAIN, 1), 0)
    made = chat.transcript(messages)
    as_template = [{"role": one.role, "content": one.content} for one in messages]
    whole = chat.tokenizer.apply_chat_template(as_template, tokenize=False)
    assert chat.tokenizer.decode(made.tokens) + "\n" == whole
    written = chat.tokenizer.decode([token for token, mine in zip(made.tokens, made.is_model, strict=True) if mine])
    assert written == "".join(one.content + "<|im_end|>" for one in messages if one.role == "assistant")


def test_a_turn_of_weight_0_stands_in_the_chat_and_is_not_learned_from(chat, tmp_path):
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "5", "weight": 0},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "4", "weight": 1},
    ]
    source = file_transcripts(chats(tmp_path / "a.jsonl", json.dumps({"messages": messages})), chat, 1, 64, seed=0)
    (made,) = source(0)
    written = [token for token, is_learned in zip(made.tokens, made.is_model, strict=True) if is_learned]
    assert chat.tokenizer.decode(written) == "4<|im_end|>"
    assert "5<|im_end|>" in chat.tokenizer.decode(made.tokens)


def test_a_transcript_is_what_an_episode_would_have_made(chat):
    messages = load_task("agent").demonstration(load_task("agent").problem(Split.TRAIN, 1), 0)
    first = next(place for place, one in enumerate(messages) if one.role == "assistant")
    tokens = chat.open(messages[:first])
    for message, answer in zip(messages[first:-1:2], messages[first + 1 :: 2], strict=True):
        tokens += chat.tokenizer.encode(message.content + "<|im_end|>", add_special_tokens=False)
        tokens += chat.go_on([answer], tokens[-1])
    tokens += chat.tokenizer.encode(messages[-1].content + "<|im_end|>", add_special_tokens=False)
    assert tokens == chat.transcript(messages).tokens


def test_a_source_depends_on_the_step_alone_and_never_repeats(chat):
    tasks = {name: load_task(name) for name in ("math", "code")}
    source = task_transcripts(tasks, ["math", "code", "math"], chat, per_step=10, max_tokens=512)
    steps = [source(step) for step in range(5)]
    assert source(3) == steps[3]
    texts = [tuple(one.tokens) for step in steps for one in step]
    assert len(set(texts)) == len(texts) == 50


def of_math(chat, per_step):
    return task_transcripts({"math": load_task("math")}, ["math"], chat, per_step, max_tokens=512)


def test_micro_batches_keep_every_token_and_their_budget(chat):
    transcripts = of_math(chat, 40)(0)
    batches = micro_batches(transcripts, token_budget=900)
    assert all(batch.tokens_BT.numel() <= 900 for batch in batches) and len(batches) > 3
    assert sum(batch.num_targets for batch in batches) == sum(sum(one.is_model) for one in transcripts)
    rows = [row[: len(one)] for batch in batches for row, one in zip(batch.tokens_BT, batch.is_target_BT, strict=True)]
    assert sum(int((row != 0).sum()) for row in rows) == sum(len(one.tokens) for one in transcripts)


def test_a_transcript_longer_than_the_budget_has_a_batch_of_its_own(chat):
    transcripts = of_math(chat, 4)(0)
    assert [len(batch.tokens_BT) for batch in micro_batches(transcripts, token_budget=1)] == [1, 1, 1, 1]


def chats(path, *lines):
    path.write_text("\n".join(lines))
    return path


def test_chats_of_a_file_come_once_an_epoch_in_a_new_order(chat, tmp_path):
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": str(n)}]})
        for n in range(8)
    ]
    source = file_transcripts(chats(tmp_path / "chats.jsonl", *lines), chat, per_step=8, max_tokens=64, seed=0)
    first, second = ([tuple(one.tokens) for one in source(step)] for step in (0, 1))
    assert sorted(first) == sorted(second) and len(set(first)) == 8
    assert first != second


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "{}",
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": "a", "weight": 0.5}]}',
        "[1]",
    ],
)
def test_a_line_that_is_no_chat_is_named(chat, tmp_path, line):
    with pytest.raises(UserError, match=r"chats.jsonl:1 is not a chat"):
        file_transcripts(chats(tmp_path / "chats.jsonl", line), chat, 1, 64, 0)


def test_lines_are_utf8_and_end_where_json_ends_them(tmp_path):
    """U+2028 ends a line for Python's text and is an ordinary character of a JSON string."""
    chat = {"messages": [{"role": "user", "content": "one\u2028two"}, {"role": "assistant", "content": "three"}]}
    path = chats(tmp_path / "chats.jsonl", json.dumps(chat, ensure_ascii=False))
    [(_, [said, _])] = read_chats(path)
    assert said.content == "one\u2028two"
    path.write_bytes(path.read_bytes() + b"\n\xff\xfe")
    with pytest.raises(UserError, match=r"chats.jsonl:2 is not UTF-8 .byte 0 of the line.; save the file as UTF-8"):
        read_chats(path)


def test_a_file_without_anything_to_learn_is_refused(chat, tmp_path):
    line = json.dumps(
        {"messages": [Message(role="user", content="hi")]},
        default=lambda one: {"role": one.role, "content": one.content},
    )
    with pytest.raises(UserError, match="no assistant turn"):
        file_transcripts(chats(tmp_path / "chats.jsonl", line), chat, 1, 64, 0)
    with pytest.raises(UserError, match="no file"):
        file_transcripts(tmp_path / "absent.jsonl", chat, 1, 64, 0)
