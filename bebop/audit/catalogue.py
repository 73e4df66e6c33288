"""The checks of an audit: what each asks, and what a failure of it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One row of the table."""

    name: str
    question: str
    meaning: str
    """What a failure means, as a sentence."""


def _law(name: str, what: str, meaning: str) -> Check:
    return Check(name=f"law/{name}", question=f"completions follow the exact law {what}", meaning=meaning)


_BIASED = "Speculation changes what is sampled: rollouts come from another distribution than the one that is trained."
_IGNORED = "The engine applies this setting differently, or not at all, to requests with drafts."

CHECKS = (
    Check(
        name="control/exact",
        question="the tests accept samples of the exact law",
        meaning="The audit rejects exact samples, so that its other verdicts mean nothing; report this as a bug of it.",
    ),
    Check(
        name="control/biased",
        question="the tests reject samples with a planted bias",
        meaning="A bias of this size goes unseen, so that passes say little; ask for more with --samples.",
    ),
    Check(
        name="engine/alive",
        question="the engine outlives ordinary requests",
        meaning="The engine dies of requests that it accepts, and takes the run with it.",
    ),
    Check(
        name="speculation/on",
        question="drafts are proposed, accepted and refused",
        meaning="Speculation is off or one-sided, so that the other checks test plain decoding.",
    ),
    _law(
        "undrafted",
        "with speculation off",
        "The engine's plain sampling differs from the policy's law already, so nothing here is about speculation.",
    ),
    _law("temperature-1", "at temperature 1", _BIASED),
    _law("temperature", "at other temperatures", _IGNORED),
    _law("top-k", "with top-k", _IGNORED),
    _law("top-p", "with top-p", _IGNORED),
    _law("min-p", "with min-p", _IGNORED),
    _law("combined", "with temperature, top-k and top-p together", _IGNORED),
    _law("greedy", "at temperature 0, in a batch with sampled rows", "Greedy requests are not answered greedily."),
    _law(
        "short-prompt",
        "after a prompt of one token, in a batch with drafts",
        "A prompt of one token is taken for a decoding step, or its missing past for a present one.",
    ),
    _law("pooled", "over all settings together", _BIASED),
    Check(
        name="law/rows",
        question="completions of one batch are independent",
        meaning="Rows or seeds share random numbers, so that a group's rollouts are fewer than they seem.",
    ),
    Check(
        name="stops/token",
        question="a stop token inside a block ends the completion",
        meaning="Tokens after a stop are returned, or stopping changes the law of what comes before it.",
    ),
    Check(
        name="stops/text",
        question="a stop string inside a block ends the completion",
        meaning="Tokens after a stop string are returned, or stopping changes the law of what comes before it.",
    ),
    Check(
        name="stops/length",
        question="completions have exactly the tokens they may have",
        meaning="Blocks are not cut at max_tokens, so that budgets and packing break.",
    ),
    Check(
        name="log-probs/behaviour",
        question="log-probs are those of the distribution sampled from",
        meaning="Importance ratios made of these log-probs are wrong, and training is biased by it.",
    ),
    Check(
        name="log-probs/raw",
        question="raw log-probs are the target's at temperature 1",
        meaning="The raw log-probs belong to another distribution than the policy's own.",
    ),
    Check(
        name="log-probs/entropy",
        question="entropies are those of the distribution sampled from",
        meaning="Entropy curves drawn from this engine are those of another distribution.",
    ),
    Check(
        name="seeds/repeat",
        question="the same request and seed give the same tokens",
        meaning="Rollouts cannot be replayed; the law may be right all the same.",
    ),
    Check(
        name="batch/composition",
        question="tokens do not depend on what shares the batch",
        meaning="A request's tokens change with its neighbours, so that runs cannot be repeated or resumed.",
    ),
    Check(
        name="weights/law",
        question="completions follow the new policy after a weight update",
        meaning="Rollouts come from old weights, or from a mixture of old and new ones.",
    ),
    Check(
        name="weights/version",
        question="tokens carry the version of the weights that sampled them",
        meaning="Staleness cannot be known, so that off-policy correction uses the wrong policy.",
    ),
    Check(
        name="weights/head",
        question="the head drafts from the new weights too",
        meaning="The draft is stale or dead: nothing is biased, and rollouts only get slower "
        "(as in verl#6661, sglang#27718, miles#1926).",
    ),
    Check(
        name="sleep/law",
        question="completions follow the exact law after sleep and wake",
        meaning="The target's weights or caches did not survive sleep.",
    ),
    Check(
        name="sleep/head",
        question="drafts are accepted as before after sleep and wake",
        meaning="The head's weights did not survive sleep: rollouts only get slower (as in vllm#52479, sglang#31674).",
    ),
)
BY_NAME: Mapping[str, Check] = MappingProxyType({check.name: check for check in CHECKS})
