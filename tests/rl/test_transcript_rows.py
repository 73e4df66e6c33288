"""Rows of transcripts are JSON whatever an engine recorded."""

from __future__ import annotations

import json
import math

from rollouts import changed, sampled_groups, small_policy

from bebop.models.policy import load_policy
from bebop.rl.transcripts import transcript_row


def test_what_an_engine_did_not_record_is_null_and_impossible_drafts_are_spelt() -> None:
    tokenizer = load_policy("tiny").tokenizer
    assert tokenizer is not None
    (group,) = sampled_groups(small_policy(), [[1.0]])
    (rollout,) = group.rollouts
    size = rollout.num_model_tokens
    rollout = changed(rollout, entropies=(math.nan,) * size, draft_logprobs=(-math.inf,) * size)
    row = json.loads(json.dumps(transcript_row(1, rollout, tokenizer), allow_nan=False))
    tokens = row["turns"][0]["tokens"]
    assert len(tokens) == size
    assert {(token["entropy"], token["draft_logprob"]) for token in tokens} == {(None, "-Infinity")}
