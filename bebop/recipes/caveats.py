"""What is known to go wrong, by where it goes wrong."""

from __future__ import annotations

from bebop.recipes.head import ServedHead
from bebop.recipes.record import Caveat

DRAFTS_FROM_ALL = Caveat(
    text="This head drafts the few tokens named in bebop.json, which only Bebop's own engine knows of; here it drafts "
    "from the whole vocabulary: the same law, and more time in the lm_head.",
    source="bebop.engines.embedded.draft_vocabulary",
)
ALIVE = Caveat(
    text="Watch the accept length after every weight update and every sleep: a head that was lost drafts garbage, "
    "nothing crashes, the length falls to 1.0 and rollouts get slower than without drafts.",
    source="verl#6661, sglang#31674, miles#1926, vllm#52479",
)
VLLM_GREEDY = Caveat(
    text="Without draft_sample_method=probabilistic vLLM drafts greedily, which is target-only acceptance: exact "
    "too, but at temperature 1 most of what the head was trained for is lost. It costs memory for the "
    "drafts' logits.",
    source="vllm#35461, vllm#40269",
)
VLLM_NOISE = Caveat(
    text="Use a vLLM of September 2026 or newer: before, its second model runner drew drafts, acceptance and "
    "residual from one random key, and sampled with a bias.",
    source="vllm#54282",
)
VLLM_CPU = Caveat(
    text="vLLM's CPU build 0.32 samples speculative requests with uninitialised settings; `bebop audit vllm` shows it.",
    source="vllm#55005",
)
VLLM_MIN_P = Caveat(text="min_p and logit_bias are refused with drafts.", source="vllm#42744")
VLLM_LOGPROBS = Caveat(
    text="logprobs_mode=processed_logprobs gives the log-probs of the distribution sampled from, temperature and "
    "truncation included; the default gives those of temperature 1.",
    source="vllm#26060",
)
VLLM_PREFIX_CACHE = Caveat(
    text="With Gated DeltaNet layers, switch prefix caching off: together with MTP it has returned wrong log-probs.",
    source="vllm#43559, vllm#53488, NeMo-RL#2999",
)
VLLM_MIMO = Caveat(
    text="vLLM knows the model type mimo only where Bebop is installed in the same environment, as a plugin that "
    "vLLM finds by itself.",
    source="bebop.engines.vllm",
)
SGLANG_OFF = Caveat(
    text="Rejection sampling is off by default and works for chains alone (eagle-topk 1); not with prefill/decode "
    "disaggregation, a reduced draft vocabulary or acceptance thresholds below 1.",
    source="sglang#26312",
)
SGLANG_CPU = Caveat(
    text="On CPU and XPU verification takes the argmax of every request: temperature and top-p have no effect.",
    source="SGLang 0.5.23, source",
)
SGLANG_MIN_P = Caveat(text="min_p is ignored without a word while drafting.", source="SGLang 0.5.23, source")
SGLANG_RELEASE = Caveat(
    text="Releasing and resuming memory has destroyed draft weights; keep the copy on the CPU "
    "(--enable-draft-weights-cpu-backup) and check the accept length.",
    source="sglang#31674, sglang#13268",
)
SGLANG_LOGPROBS = Caveat(
    text="Log-probs are tempered but not truncated: correct them for top-k and top-p, or sample without.",
    source="sglang#36213",
)
SGLANG_EAGLE = Caveat(
    text="SGLang's class for EAGLE drafts has another name than vLLM's and a bias that Bebop's head does not "
    "have; left out, the bias is random. The draft directory is rewritten for it by the first block.",
    source="SGLang, python/sglang/srt/models/llama_eagle.py",
)
SGLANG_UPDATES = Caveat(
    text="Weight updates go to target and draft by default; send the frozen draft none (selector target), or it "
    "is processed a second time.",
    source="miles#1926",
)


def vllm_caveats(head: ServedHead) -> tuple[Caveat, ...]:
    """Of everything that samples with vLLM."""
    always = (ALIVE, VLLM_GREEDY, VLLM_NOISE, VLLM_LOGPROBS, VLLM_MIN_P, VLLM_CPU)
    contract = head.spec.contract
    gated = "linear_attention" in (getattr(head.spec.config, "layer_types", None) or ())
    mimo = contract is not None and contract.name == "mimo"
    return (*always, *((VLLM_PREFIX_CACHE,) if gated else ()), *((VLLM_MIMO,) if mimo else ()), *of_any_engine(head))


def sglang_caveats(head: ServedHead) -> tuple[Caveat, ...]:
    """Of everything that samples with SGLang."""
    always = (ALIVE, SGLANG_OFF, SGLANG_LOGPROBS, SGLANG_MIN_P, SGLANG_RELEASE, SGLANG_CPU)
    return (*always, *((SGLANG_EAGLE,) if head.draft_directory else ()), *of_any_engine(head))


def of_any_engine(head: ServedHead) -> tuple[Caveat, ...]:
    record = head.spec.record
    return (DRAFTS_FROM_ALL,) if record is not None and record.draft_vocabulary is not None else ()
