"""Recipes say what they mean: their text parses to their data, and the data freezes the head and samples its drafts."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from bebop.audit.policies import Format, PolicyRecipe, write_policy
from bebop.cli.main import build_app, run
from bebop.engines.base import DraftStats
from bebop.engines.vllm.counters import acceptance_metrics
from bebop.errors import UserError
from bebop.models.names import resolve_name
from bebop.recipes.caveats import DRAFTS_FROM_ALL
from bebop.recipes.record import Block, Caveat, Recipe
from bebop.recipes.registry import RECIPES, make_recipe

K = 4


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("policies")
    for format in (Format.MIMO, Format.EAGLE):
        write_policy(PolicyRecipe(format=format, vocabulary=8), directory / format.value)
    return {"tiny": "tiny", "mimo": str(directory / "mimo"), "eagle": str(directory / "eagle")}


def parsed(block: Block) -> Any:
    """The text of a block as its framework reads it, in the form of its data."""
    match block.form:
        case "yaml":
            return yaml.safe_load(block.text)
        case "toml":
            return tomllib.loads(block.text)
        case "overrides":
            words = (word.partition("=") for word in shlex.split(block.text.replace("\\\n", " ")))
            return {key: yaml.safe_load(value) for key, _, value in words}
        case "shell":
            return parsed_command(block)
    raise AssertionError(block.form)


def parsed_command(block: Block) -> dict[str, Any]:
    words = shlex.split(block.text.replace("\\\n", " "))
    size = len(block.data["command"])
    options: dict[str, Any] = {}
    for word in words[size:]:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            options[name] = True
        else:
            options[name] = json.loads(word) if word[0] in "{[" or word.isdigit() else word
    return {"command": words[:size], "options": options}


def settings(data: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf by the last part of its name."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from settings(value) if isinstance(value, Mapping) else [(str(key).rpartition(".")[2], value)]


def all_settings(recipe: Recipe) -> dict[str, Any]:
    return {name.removeprefix("sglang_"): value for block in recipe.blocks for name, value in settings(block.data)}


@pytest.mark.parametrize("policy", ["tiny", "eagle"])
@pytest.mark.parametrize("framework", list(RECIPES))
def test_every_recipe_reads_back_as_what_it_says(policies: dict[str, str], framework: str, policy: str) -> None:
    recipe = make_recipe(framework, policies[policy], K)
    if recipe.refusal:
        assert (framework, policy) == ("skyrl", "eagle")
        assert recipe.blocks == ()
        return
    for block in recipe.blocks:
        if block.form != "python":
            assert parsed(block) == block.data
    assert recipe.caveats
    assert all(caveat.text.endswith(".") and caveat.source for caveat in recipe.caveats)


@pytest.mark.parametrize("framework", list(RECIPES))
def test_a_draft_vocabulary_is_a_caveat(policies: dict[str, str], framework: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(resolve_name(policies["tiny"]), copy)
    record = json.loads((copy / "bebop.json").read_text())

    def caveats(drafted: dict[str, list[int]]) -> tuple[Caveat, ...]:
        others = {key: value for key, value in record.items() if key != "draft_vocabulary"}
        (copy / "bebop.json").write_text(json.dumps(others | drafted))
        return make_recipe(framework, str(copy), K).caveats

    plain, few = caveats({}), caveats({"draft_vocabulary": [1, 2]})
    assert [one for one in few if one not in plain] == [DRAFTS_FROM_ALL]


@pytest.mark.parametrize("policy", ["tiny", "eagle"])
@pytest.mark.parametrize("framework", list(RECIPES))
def test_drafts_are_sampled_and_verified_by_their_ratio(policies: dict[str, str], framework: str, policy: str) -> None:
    recipe = make_recipe(framework, policies[policy], K)
    if recipe.refusal:
        return
    found = all_settings(recipe)
    if framework in ("sglang", "slime"):
        assert found["speculative_use_rejection_sampling"] is True
        assert found["speculative_eagle_topk"] == 1
        assert (found["speculative_num_steps"], found["speculative_num_draft_tokens"]) == (K, K + 1)
        assert found["speculative_algorithm"] == ("NEXTN" if policy == "tiny" else "EAGLE")
    else:
        assert found["draft_sample_method"] == "probabilistic"
        assert found["rejection_sample_method"] == "standard"
        assert found["num_speculative_tokens"] == K
        assert found["method"] == ("mtp" if policy == "tiny" else "eagle")
    draft = found.get("speculative_draft_model_path") or found.get("model")
    if policy == "eagle":
        assert str(draft).startswith(str(Path(policies["eagle"]) / "eagle"))
    trains_head = ("enable_train", "mtp_num_layers", "enabled")
    assert not any(found.get(name) for name in trains_head if framework != "verl" or name == "enable_train")


def test_metrics_are_translated_to_names_that_there_are() -> None:
    stats = DraftStats(rounds=4, emitted=9, drafted=(4, 4), reached=(4, 3), accepted=(3, 2), overlaps=(3.0, 2.0))
    ours = set(acceptance_metrics(stats))
    for framework in RECIPES:
        for metric in make_recipe(framework, "tiny").metrics:
            if metric.ours is not None:
                assert metric.ours.replace("@i+1", "@1").replace("@k", "@1") in ours
            else:
                assert metric.note


def test_a_draft_directory_is_rewritten_for_sglang(policies: dict[str, str]) -> None:
    recipe = make_recipe("sglang", policies["eagle"])
    rewrite, serve = recipe.blocks
    assert rewrite.form == "python"
    subprocess.run([sys.executable, "-c", rewrite.text], check=True)
    out = Path(serve.data["options"]["speculative_draft_model_path"])
    before, after = (load_file(place / "model.safetensors") for place in (Path(policies["eagle"]) / "eagle", out))
    assert torch.equal(after.pop("fc.bias"), torch.zeros(64))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLMEagle"]


def test_a_head_made_for_another_wiring_is_refused(policies: dict[str, str]) -> None:
    """MiMo's is made for vLLM's input, before the final norm; SGLang feeds it the one after."""
    assert make_recipe("vllm", policies["mimo"]).blocks
    for framework in ("sglang", "slime"):
        with pytest.raises(UserError, match="input_norm=post"):
            make_recipe(framework, policies["mimo"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe for 'vlm'; choose one of vllm"):
        make_recipe("vlm", "tiny")
    with pytest.raises(UserError, match="no policy"):
        make_recipe("vllm", tmp_path / "nothing")
    with pytest.raises(UserError, match="k is 0"):
        make_recipe("vllm", "tiny", 0)


def test_the_command_prints_what_the_library_says(capsys: pytest.CaptureFixture[str]) -> None:
    run_quietly(["recipe", "prime-rl", "--policy", "tiny", "--k", "2", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["blocks"][0]["data"]["inference"]["vllm"]["speculative_config"]["num_speculative_tokens"] == 2
    assert printed["head"]["method"] == "mtp"
    run_quietly(["recipe", "verl", "--policy", "tiny"])
    text = capsys.readouterr().out
    for part in ("actor_rollout_ref.model.mtp.enable_train=false", "rollout/spec_accept_length", "verl#6661"):
        assert part in text


def test_a_framework_that_cannot_ends_with_one(policies: dict[str, str]) -> None:
    done = CliRunner().invoke(build_app("recipe"), ["recipe", "skyrl", "--policy", policies["eagle"]])
    assert done.exit_code == 1
    assert "SkyRL#2176" in done.output


def run_quietly(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(words)
    assert stopped.value.code in (0, None)


@pytest.mark.vllm
@pytest.mark.parametrize("policy", ["mimo", "eagle"])
def test_vllm_builds_its_configuration_from_the_printed_command(policies: dict[str, str], policy: str) -> None:
    pytest.importorskip("vllm")
    from vllm import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from bebop.engines.vllm.binding import register

    register()
    block = make_recipe("vllm", policies[policy], K).blocks[0]
    words = shlex.split(block.text.replace("\\\n", " "))
    assert words[:2] == ["vllm", "serve"]
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", *words[2:], "--dtype", "float32"]))
    built = arguments.create_engine_config()
    speculative = built.speculative_config
    assert speculative.num_speculative_tokens == K
    assert speculative.method == ("mtp" if policy == "mimo" else "eagle")
    assert (speculative.draft_sample_method, speculative.rejection_sample_method) == ("probabilistic", "standard")
    assert built.model_config.logprobs_mode == "processed_logprobs"
    assert not built.cache_config.enable_prefix_caching
