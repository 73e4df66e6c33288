"""How the shipped `tiny` policy is made: a tokenizer from the tasks' transcripts, random weights, then training.

`make tiny-policy` runs the stages in turn: ``write_initial_policy``, `bebop train-sft`, `bebop train-mtp`, ``ship``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from bebop.errors import UserError, run_as_program
from bebop.files import atomic_directory
from bebop.models.chat_template import CHATML
from bebop.models.checkpoint import new_directory
from bebop.models.tiny import VOCAB_SIZE, tiny_config, tiny_path
from bebop.runs import RunDirectory
from bebop.tasks.base import Split, Task
from bebop.tasks.registry import load_task

NUM_TRANSCRIPTS = 3000
"""Per task, for the tokenizer."""
EMBEDDING_NORM = 2.0
"""Of a token at first. Words that are asked for equally often (file names, settings) are pulled the same way by their
shared predictions; from the usual 0.02 a coordinate they end at a cosine of 0.95, and nothing can tell them apart."""
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = ("<|endoftext|>", TURN_START, TURN_END)
TOOL_TAGS = ("<tool_call>", "</tool_call>")
PIECES = r' ?\{?"\p{L}+"[:,]?|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+'
"""Quoted words with the punctuation of JSON, single digits, words, runs of punctuation, runs of white space."""


def write_initial_policy(path: Path, config: Qwen3_5TextConfig, tasks: Sequence[Task], seed: int) -> None:
    """A checkpoint of random weights with a tokenizer trained on ``tasks``' transcripts."""
    tokenizer = train_tokenizer(demonstration_texts(tasks))
    torch.manual_seed(seed)
    backbone = Qwen3_5ForCausalLM(config)
    nn.init.normal_(backbone.model.embed_tokens.weight, std=EMBEDDING_NORM / config.hidden_size**0.5)
    nn.Module.to(backbone, torch.bfloat16)
    end, padding = (tokenizer.convert_tokens_to_ids(name) for name in (TURN_END, SPECIAL[0]))
    backbone.config.update({"eos_token_id": end, "pad_token_id": padding})
    backbone.generation_config.update(eos_token_id=end, pad_token_id=padding)
    with new_directory(path) as part:
        backbone.save_pretrained(part)
        tokenizer.save_pretrained(part)


def demonstration_texts(tasks: Sequence[Task]) -> Iterator[str]:
    for task in tasks:
        for index in range(NUM_TRANSCRIPTS):
            messages = task.demonstration(task.problem(Split.TRAIN, index), seed=0)
            yield "".join(f"{TURN_START}{one.role}\n{one.content}{TURN_END}\n" for one in messages)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``VOCAB_SIZE`` entries; digits stay single, so that numbers can be computed with."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TOOL_TAGS),
        special_tokens=[*SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TOOL_TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=TURN_END, pad_token=SPECIAL[0], chat_template=CHATML
    )


def ship(trained: Path, runs: Sequence[Path], target: Path) -> None:
    """Copy a trained checkpoint to where the package ships it, with a record of the runs that made it."""
    stages = [asdict(one) for run in runs for one in RunDirectory.open(run).provenance()]
    record = {
        "stages": stages,
        "data": "demonstrations of math, code and agent (train split, seed 0); for the head, the policy's own rollouts",
        "licence": "Apache-2.0",
    }
    with atomic_directory(target) as part:
        shutil.copytree(trained, part, dirs_exist_ok=True)
        (part / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")


def main(words: Sequence[str]) -> None:
    """``init DIRECTORY`` or ``ship DIRECTORY RUN...``"""
    match words:
        case ["init", directory]:
            tasks = [load_task(name) for name in ("math", "code", "agent")]
            write_initial_policy(Path(directory), tiny_config(), tasks, seed=0)
        case ["ship", directory, *runs]:
            ship(Path(directory), [Path(run) for run in runs], tiny_path())
        case _:
            raise UserError("write `init DIRECTORY` or `ship DIRECTORY RUN...`")


if __name__ == "__main__":
    run_as_program(main)
