"""What a person can get wrong about a checkpoint: one sentence that names it, and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import edit_json, load_tensors, make_policy, rewrite

from bebop.errors import UserError
from bebop.models.contracts import contract_for
from bebop.models.policy import load_policy, save_policy
from bebop.models.stitch import stitch

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "policy"
    save_policy(make_policy("qwen3_5"), path)
    return path


def copy_with(source: Path, target: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of a checkpoint whose tensors were changed in place."""
    target.mkdir()
    for file in ("config.json", "bebop.json"):
        (target / file).write_bytes((source / file).read_bytes())
    tensors = load_tensors(source)
    change(tensors)
    rewrite(target, tensors)
    return target


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


def malformed_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def unknown_type(path: Path) -> None:
    edit_json(path / "config.json", model_type="bert")


def invented_type(path: Path) -> None:
    edit_json(path / "config.json", model_type="no_such_type")


def truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def corrupt_header(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:8] + b"x" * 40 + file.read_bytes()[48:])


def overlapping_tensors(path: Path) -> None:
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["mtp.norm.weight"]["data_offsets"] = [0, 128]
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


def empty_file(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def no_weights(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def untied_without_lm_head(path: Path) -> None:
    tensors = load_tensors(path)
    del tensors["lm_head.weight"]
    rewrite(path, tensors)


def tied_with_another_lm_head(path: Path) -> None:
    edit_json(path / "config.json", tie_word_embeddings=True)


def other_contract(path: Path) -> None:
    edit_json(path / "bebop.json", contract="mimo")


def unknown_option(path: Path) -> None:
    edit_json(path / "bebop.json", options={"colour": "red"})


def closed_option(path: Path) -> None:
    edit_json(path / "bebop.json", options={"recycle": "pre"})


def shuffled_vocabulary(path: Path) -> None:
    edit_json(path / "bebop.json", draft_vocabulary=[3, 1])


def empty_vocabulary(path: Path) -> None:
    edit_json(path / "bebop.json", draft_vocabulary=[])


def foreign_vocabulary(path: Path) -> None:
    edit_json(path / "bebop.json", draft_vocabulary=[3, 61])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, r"has no config\.json"),
        (malformed_config, r"config\.json is not valid JSON"),
        (unknown_type, r"(?s)'bert'.*supported are qwen3_5, "),
        (invented_type, r"config\.json describes no model that transformers knows"),
        (truncated, r"model\.safetensors is corrupt or truncated"),
        (corrupt_header, r"model\.safetensors is corrupt or truncated \(its header is not valid\)"),
        (overlapping_tensors, r"model\.safetensors is corrupt or truncated \(the place of tensor mtp\.norm\.weight"),
        (empty_file, r"model\.safetensors is corrupt or truncated \(its header is incomplete\)"),
        (no_weights, r"holds no model\.safetensors"),
        (untied_without_lm_head, r"lm_head\.weight is missing though config\.json says tie_word_embeddings=false"),
        (tied_with_another_lm_head, r"lm_head\.weight differs from model\.embed_tokens\.weight"),
        (other_contract, r"bebop\.json speaks of a mimo head but the backbone takes a qwen3_5 head"),
        (unknown_option, r"bebop\.json: options must be among"),
        (closed_option, r"qwen3_5 head fixes recycle"),
        (shuffled_vocabulary, r"bebop\.json: draft_vocabulary must be token ids below 61 in rising order"),
        (empty_vocabulary, r"bebop\.json: draft_vocabulary must be token ids below 61 in rising order"),
        (foreign_vocabulary, r"draft_vocabulary must be token ids below 61"),
    ],
)
def test_a_damaged_checkpoint(damage: Callable[[Path], None], message: str, good: Path, tmp_path: Path) -> None:
    path = copy_with(good, tmp_path / "bad", lambda tensors: None)
    damage(path)
    refuse(path, message)


def refuse(path: Path, message: str) -> None:
    """Loading and stitching refuse with one line, and leave the directory's surroundings as they were."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", ")"))
    with pytest.raises(UserError):
        stitch(path, path, path.parent / "out")
    assert sorted(path.parent.rglob("*")) == before


def lose_norm(tensors: Tensors) -> None:
    del tensors["mtp.norm.weight"]


def lose_head(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("mtp.")]:
        del tensors[name]


def gain_tensor(tensors: Tensors) -> None:
    tensors["mtp.layers.1.mlp.up_proj.weight"] = torch.zeros(2)


def misshape(tensors: Tensors) -> None:
    tensors["mtp.fc.weight"] = tensors["mtp.fc.weight"].T.contiguous()


def narrow_float(tensors: Tensors) -> None:
    tensors["mtp.fc.weight"] = tensors["mtp.fc.weight"].to(torch.float8_e4m3fn)


def lose_backbone_tensor(tensors: Tensors) -> None:
    del tensors["model.layers.1.self_attn.q_norm.weight"]


def foreign_head(tensors: Tensors) -> None:
    lose_head(tensors)
    tensors["model.mtp_layers.0.input_proj.weight"] = torch.zeros(32, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_norm, r"qwen3_5 head in .* has missing tensors: mtp\.norm\.weight;"),
        (lose_head, r"announces an MTP head \(mtp_num_hidden_layers=1\) but no tensor is under mtp\.\*"),
        (gain_tensor, r"has unexpected tensors: mtp\.layers\.1\.mlp\.up_proj\.weight;"),
        (misshape, r"has wrongly shaped tensors: mtp\.fc\.weight \[64, 32\] instead of \[32, 64\]"),
        (narrow_float, r"mtp\.fc\.weight belongs to a quantised \(FP8\) checkpoint"),
        (lose_backbone_tensor, r"backbone in .* has missing tensors: model\.layers\.1\.self_attn\.q_norm\.weight"),
        (foreign_head, r"holds a mimo head .* config asks for a qwen3_5 head"),
    ],
)
def test_tensors_that_do_not_add_up(
    change: Callable[[Tensors], None], message: str, good: Path, tmp_path: Path
) -> None:
    refuse(copy_with(good, tmp_path / "bad", change), message)


def test_an_index_at_odds_with_its_shards(good: Path, tmp_path: Path) -> None:
    path = copy_with(good, tmp_path / "bad", lambda tensors: None)
    rewrite(path, load_tensors(path), num_shards=2)
    index = path / "model.safetensors.index.json"
    original = json.loads(index.read_text())
    weight_map = original["weight_map"]
    edit_json(index, weight_map={name: "model-00001-of-00002.safetensors" for name in weight_map})
    refuse(path, r"index\.json places .* where it is not")
    edit_json(index, weight_map={n: s for n, s in weight_map.items() if n != "mtp.norm.weight"})
    refuse(path, r"index\.json does not list mtp\.norm\.weight")
    edit_json(index, weight_map=weight_map)
    (path / "model-00002-of-00002.safetensors").unlink()
    refuse(path, r"model-00002-of-00002\.safetensors is missing though")


def test_several_modules_are_told_apart_from_one(good: Path, tmp_path: Path) -> None:
    path = copy_with(good, tmp_path / "two", lambda tensors: None)
    edit_json(path / "config.json", mtp_num_hidden_layers=2)
    with pytest.raises(UserError, match=r"2 MTP modules \(mtp_num_hidden_layers\)"):
        load_policy(path)
    assert load_policy(path, head="none").head is None


def test_a_name_that_stands_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("There is no policy 'tinny'")):
        load_policy("tinny")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a directory"):
        load_policy(tmp_path / "file")
    with pytest.raises(UserError, match="No MTP head is known for model_type 'bert'"):
        contract_for("bert")


def test_a_policy_is_not_saved_over_something_else(good: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and is no checkpoint"):
        save_policy(load_policy(good), tmp_path / "mine")
    assert [item.name for item in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_a_save_that_fails_leaves_nothing_and_the_old_checkpoint(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(load_policy(good), tmp_path / "old")
    before = {file: file.read_bytes() for file in (tmp_path / "old").iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bebop.models.saving.write_head_record", full_disk)
    for target in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            save_policy(load_policy(good), tmp_path / target)
    assert [item.name for item in tmp_path.iterdir()] == ["old"]
    assert {file: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before
