"""Defects to plant into the embedded engine: the audit's self-test. Each is one that engines have had, or could have.

A plant replaces a few functions of the engine while its context is open. It is for one process that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bebop.audit import plants_bookkeeping as bookkeeping
from bebop.audit import plants_sampling as sampling
from bebop.errors import UserError

Edit = tuple[Any, str, Any]
"""(owner, attribute, what it becomes)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plant:
    """A defect. ``fails`` are the checks that must see it; others may see it too."""

    name: str
    defect: str
    edits: Callable[[], list[Edit]]
    fails: tuple[str, ...]


_PLANTS = (
    Plant(
        name="shared-noise",
        defect="draft, acceptance and leftover share their random numbers (vllm#54282)",
        edits=sampling.shared_noise,
        fails=("law/temperature-1", "law/pooled"),
    ),
    Plant(
        name="wrong-bonus-index",
        defect="the token after a fully accepted block is drawn one position too early (Algorithm 3 of the paper)",
        edits=sampling.wrong_bonus_index,
        fails=("law/temperature-1", "law/pooled"),
    ),
    Plant(
        name="residual-from-target",
        defect="after a rejection the whole target is sampled, not (p - q)+ (ShopeeLLM/Spec-RL#14)",
        edits=sampling.residual_from_target,
        fails=("law/temperature-1", "law/pooled"),
    ),
    Plant(
        name="another-q",
        defect="drafts are sampled from a sharper distribution than the one that judges them (transformers#47932)",
        edits=sampling.another_q,
        fails=("law/temperature-1", "law/pooled"),
    ),
    Plant(
        name="reused-coins",
        defect="every round of a request tosses the same coins",
        edits=sampling.reused_coins,
        fails=("law/pooled",),
    ),
    Plant(
        name="accept-all",
        defect="the acceptance coin is always 0, so that every draft is accepted (vllm-ascend#13730)",
        edits=sampling.accept_all,
        fails=("law/temperature-1", "law/pooled", "speculation/on"),
    ),
    Plant(
        name="argmax",
        defect="verification takes the target's likeliest token whatever the settings (SGLang on CPU)",
        edits=sampling.argmax,
        fails=("law/temperature-1", "law/temperature", "law/top-k", "law/top-p", "law/min-p", "law/combined"),
    ),
    Plant(
        name="stale-temperature",
        defect="a slot is sampled with the settings of the batch before (vllm#9834, #10198)",
        edits=sampling.stale_settings,
        fails=("law/temperature", "law/greedy"),
    ),
    Plant(
        name="ignored-settings",
        defect="temperature, top-k, top-p and min-p do not reach requests with drafts",
        edits=sampling.ignored_settings,
        fails=("law/temperature", "law/top-k", "law/top-p", "law/min-p", "law/combined"),
    ),
    Plant(
        name="no-min-p",
        defect="min-p is dropped without a word (SGLang's EAGLE verification)",
        edits=sampling.no_min_p,
        fails=("law/min-p",),
    ),
    Plant(
        name="uninitialised-settings",
        defect="after the first token, settings are what memory holds (vllm#55005)",
        edits=sampling.uninitialised_settings,
        fails=("law/temperature-1", "law/pooled"),
    ),
    Plant(
        name="warm-plain-decoding",
        defect="without drafts, tokens are sampled from a sharper distribution",
        edits=sampling.warm_plain_decoding,
        fails=("law/undrafted",),
    ),
    Plant(
        name="one-coin-for-all-rows",
        defect="all rows of a batch toss one coin (vllm#17498 across ranks)",
        edits=sampling.one_coin_for_all_rows,
        fails=("law/rows",),
    ),
    Plant(
        name="batch-seeds",
        defect="a row's random numbers depend on its place in the batch",
        edits=sampling.batch_seeds,
        fails=("batch/composition",),
    ),
    Plant(
        name="unrepeatable-seeds",
        defect="seeds are mixed with the number of the call (vLLM's V1 drafts ignore them)",
        edits=sampling.unrepeatable_seeds,
        fails=("seeds/repeat",),
    ),
    Plant(
        name="no-speculation",
        defect="speculation is off, without a word",
        edits=bookkeeping.no_speculation,
        fails=("speculation/on",),
    ),
    Plant(
        name="stop-not-cut",
        defect="stops are looked for at the end of a block only",
        edits=bookkeeping.stop_not_cut,
        fails=("stops/token", "stops/text"),
    ),
    Plant(
        name="length-not-cut",
        defect="max_tokens is looked at when a block has ended",
        edits=bookkeeping.length_not_cut,
        fails=("stops/length",),
    ),
    Plant(
        name="draft-logprobs",
        defect="the log-probs returned are the draft's where there was one",
        edits=bookkeeping.draft_logprobs,
        fails=("log-probs/behaviour",),
    ),
    Plant(
        name="untempered-logprobs",
        defect="the log-probs returned are those of temperature 1 without truncation (vLLM's default)",
        edits=bookkeeping.untempered_logprobs,
        fails=("log-probs/behaviour",),
    ),
    Plant(
        name="tempered-raw-logprobs",
        defect="the raw log-probs returned are those of the sampling distribution",
        edits=bookkeeping.tempered_raw_logprobs,
        fails=("log-probs/raw",),
    ),
    Plant(
        name="entropy-in-bits",
        defect="entropies are in bits",
        edits=bookkeeping.entropy_in_bits,
        fails=("log-probs/entropy",),
    ),
    Plant(
        name="stale-weights",
        defect="a weight update changes the version and nothing else (trl#5312)",
        edits=bookkeeping.stale_weights,
        fails=("weights/law",),
    ),
    Plant(
        name="stale-head",
        defect="a weight update leaves the head as it was (sglang#27718)",
        edits=bookkeeping.stale_head,
        fails=("weights/head",),
    ),
    Plant(
        name="wrong-version",
        defect="tokens carry the version before the update",
        edits=bookkeeping.wrong_version,
        fails=("weights/version",),
    ),
)
PLANTS: Mapping[str, Plant] = MappingProxyType({plant.name: plant for plant in _PLANTS})


@contextmanager
def planted(name: str) -> Iterator[Plant]:
    """The embedded engine with a defect; UserError naming the plants where there is no such one."""
    if name not in PLANTS:
        raise UserError(f"there is no plant {name!r}; choose one of {', '.join(PLANTS)}")
    plant = PLANTS[name]
    with ExitStack() as restored:
        for owner, attribute, value in plant.edits():
            restored.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, value)
        yield plant
