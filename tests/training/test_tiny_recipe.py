"""How `tiny` is made: a tokenizer that fits its embeddings, and embeddings that stay apart."""

import random

import torch
from transformers import AutoModelForCausalLM

from bebop.models.tiny import VOCAB_SIZE, tiny_config
from bebop.training import tiny


def test_the_tokenizer_leaves_room_for_the_tool_tags():
    rng = random.Random(0)
    words = ("".join(rng.choices("abcdefghij", k=5)) for _ in range(4000))
    tokenizer = tiny.train_tokenizer(iter([" ".join(words)] * 2))
    assert len(tokenizer) <= VOCAB_SIZE
    assert [tokenizer.encode(tag) for tag in tiny.TOOL_TAGS] == [[VOCAB_SIZE - 2], [VOCAB_SIZE - 1]]


def test_tokens_start_apart_at_a_norm_that_training_does_not_pass_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "demonstration_texts", lambda tasks: iter(["red blue green gray"]))
    tiny.write_initial_policy(tmp_path / "init", tiny_config(), [], seed=0)
    embeddings = AutoModelForCausalLM.from_pretrained(tmp_path / "init").get_input_embeddings().weight.float()
    assert torch.allclose(embeddings.norm(dim=-1).mean(), torch.tensor(tiny.EMBEDDING_NORM), rtol=0.05)
