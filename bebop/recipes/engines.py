"""Recipes for the engines themselves."""

from __future__ import annotations

from bebop.recipes.caveats import sglang_caveats, vllm_caveats
from bebop.recipes.head import ServedHead
from bebop.recipes.metrics import sglang_metrics, vllm_counters
from bebop.recipes.record import Block, Recipe
from bebop.recipes.write import shell

_SGLANG_DRAFT = """import json, shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

source, out = Path({source!r}), Path({out!r})
shutil.copytree(source, out, dirs_exist_ok=True)
tensors = load_file(source / "model.safetensors")
tensors["fc.bias"] = torch.zeros(tensors["fc.weight"].shape[0], dtype=tensors["fc.weight"].dtype)
save_file(tensors, out / "model.safetensors", {{"format": "pt"}})
config = json.loads((source / "config.json").read_text())
config["architectures"] = ["LlamaForCausalLMEagle"]
(out / "config.json").write_text(json.dumps(config, indent=2))"""


def vllm(head: ServedHead) -> Recipe:
    options = {
        "speculative_config": head.vllm,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "no_enable_prefix_caching": True,
        "per_request_spec_decode_metrics": "summary",
    }
    return Recipe(
        framework="vllm",
        checked="vLLM 0.32",
        head=head.describe(),
        blocks=(shell("Serve", ("vllm", "serve", head.policy), options),),
        metrics=vllm_counters(),
        caveats=vllm_caveats(head),
    )


def sglang(head: ServedHead) -> Recipe:
    command = ("python", "-m", "sglang.launch_server", "--model-path", head.policy)
    return Recipe(
        framework="sglang",
        checked="SGLang 0.5.23",
        head=head.describe(),
        blocks=(*sglang_draft(head), shell("Serve", command, {**head.sglang, "enable_metrics": True})),
        metrics=sglang_metrics(),
        caveats=sglang_caveats(head),
    )


def sglang_draft(head: ServedHead) -> tuple[Block, ...]:
    """Python that rewrites an EAGLE draft directory for SGLang; nothing for a head inside the checkpoint."""
    source = head.draft_directory
    if source is None:
        return ()
    out = head.sglang["speculative_draft_model_path"]
    text = _SGLANG_DRAFT.format(source=source, out=out)
    data = {"source": source, "out": out}
    return (Block(title="Rewrite the draft directory for SGLang, once", form="python", data=data, text=text),)
