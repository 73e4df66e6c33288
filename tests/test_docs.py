"""What the documents show exists: commands parse, configurations load, links lead somewhere, names are real."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
import typer
from document_checks import CHECKS, Check, dead_links, unknown_names, wrong_commands
from documents import ROOT, Document
from transformers import (
    DeepseekV3Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)

from bebop.cli.main import COMMANDS
from bebop.config import ConfigModel, load_config
from bebop.core.objectives import OBJECTIVES
from bebop.models.contracts import CONTRACTS, HeadContract
from bebop.models.head import MTPHead, head_config
from bebop.models.naming import head_tensor_names
from bebop.rl.config import TrainRL
from bebop.training.mtp_config import TrainMTP
from bebop.training.sft import TrainSFT


def documents() -> list[Document]:
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")]
    return [Document.read(path) for path in [*top, *sorted((ROOT / "docs").rglob("*.md"))]]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in documents are written from the root of the repository."""
    monkeypatch.chdir(ROOT)


def problems(document: Document) -> list[str]:
    return [problem for check in CHECKS for problem in check(document)]


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_what_a_document_shows_exists(document: Document) -> None:
    assert problems(document) == []


def examples() -> Iterator[Document]:
    """The example of every command's help, as a document."""
    for row in COMMANDS:
        module, _, attribute = row.target.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        commands = [one.callback for one in target.registered_commands] if isinstance(target, typer.Typer) else [target]
        for command in commands:
            example = re.sub(r"\[/?bold\]", "", (command.__doc__ or "").partition("Example:")[2].strip())
            name = f"{row.name}-{command.__name__}"
            yield Document(path=ROOT / name, text=f"```\n{' '.join(example.split())}\n```\n")


def test_the_examples_of_the_help_can_be_typed() -> None:
    for document in examples():
        assert list(document.commands()), document.name
        assert problems(document) == [], document.name


def test_every_page_is_in_the_index() -> None:
    index = Document.read(ROOT / "docs" / "index.md")
    linked = {(index.path.parent / link.partition("#")[0]).resolve() for link in index.links()}
    pages = {*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guides").glob("*.md")} - {index.path}
    missing = sorted(path.name for path in pages - linked)
    assert missing == [], "add a line for each to docs/index.md"


# What documents tell of the code in tables.


def test_every_module_of_the_core_has_its_place_in_the_mathematics() -> None:
    text = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    modules = [path.stem for path in (ROOT / "bebop" / "core").glob("*.py") if path.stem != "__init__"]
    assert [name for name in modules if f"`bebop.core.{name}`" not in text] == []


def test_the_table_of_objectives_is_that_of_the_code() -> None:
    rows = Document.read(ROOT / "docs" / "math.md").table("objective")
    assert [row[0] for row in rows] == list(OBJECTIVES)


def test_the_table_of_contracts_is_that_of_the_code() -> None:
    rows = Document.read(ROOT / "docs" / "formats.md").table("contract")
    assert rows == [contract_row(contract) for contract in CONTRACTS]


def contract_row(contract: HeadContract) -> list[str]:
    return [
        contract.name,
        ", ".join(contract.model_types),
        contract.prefix.format(num_hidden_layers="L") or f"{contract.subdirectory}/",
        contract.concat_order.replace("_", " "),
        contract.input_norm,
        contract.recycle,
        "1 + w" if contract.zero_centred_norm else "w",
        ", ".join(sorted(contract.open_options)) or "none",
    ]


GUIDES: dict[str, type[ConfigModel]] = {"train-sft": TrainSFT, "train-mtp": TrainMTP, "train-rl": TrainRL}
"""Guide -> the configuration whose settings it names."""
SETTING = re.compile(r"(?:[a-z_]+\.)+[a-z_]+|[a-z_.]+=\S.*")
"""A dotted path, or an override."""
FILES = (".json", ".jsonl", ".yaml")


@pytest.mark.parametrize("name", GUIDES)
def test_the_settings_of_a_guide_are_those_of_the_code(name: str) -> None:
    document = Document.read(ROOT / "docs" / "guides" / f"{name}.md")
    named = {setting for row in document.table("setting") for setting in row[0].split(", ")}
    spans = {span for span in document.spans() if SETTING.fullmatch(span) and not span.endswith(FILES)}
    assert spans
    for setting in named | spans:
        path, is_override, _ = setting.partition("=")
        assert has_setting(GUIDES[name], path.split(".")), setting
        if is_override:
            load_config(GUIDES[name], f"configs/{name}-tiny.yaml", [setting])


def has_setting(model: type[ConfigModel], path: list[str]) -> bool:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    field = fields.get(path[0])
    if field is None or len(path) == 1:
        return field is not None
    sections = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
    return any(issubclass(one, ConfigModel) and has_setting(one, path[1:]) for one in sections)


CONFIGS = {
    "qwen3_5": Qwen3_5TextConfig,
    "qwen3_5_moe": Qwen3_5MoeTextConfig,
    "qwen3_next": Qwen3NextConfig,
    "mimo": Qwen2Config,
    "deepseek_v3": DeepseekV3Config,
    "eagle": LlamaConfig,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_lists_of_tensors_are_those_of_the_code(name: str) -> None:
    fences = {fence.info: fence.text.split() for fence in Document.read(ROOT / "docs" / "formats.md").fences()}
    if f"tensors {name}" in fences:
        listed = fences[f"tensors {name}"]
    else:
        shared = [tensor for tensor in fences["tensors qwen3_5"] if ".mlp." not in tensor]
        listed = shared + fences[f"tensors {name} mlp"]
    assert sorted(listed) == sorted(stored_tensors(name))


def stored_tensors(name: str) -> set[str]:
    """What a fresh head of that contract is stored under, an expert's number as {e}."""
    contract = next(contract for contract in CONTRACTS if contract.name == name)
    with torch.device("meta"):
        head = MTPHead(contract, head_config(contract, CONFIGS[name]()))
    names = head_tensor_names(contract, head.state_dict())
    return {re.sub(r"\.experts\.\d+\.", ".experts.{e}.", tensor) for tensor in names}


# Mistakes that must be found, and what must be let through.

PLANTED: list[tuple[Check, str]] = [
    (wrong_commands, "```\nbebop train-mpt configs/train-mtp-tiny.yaml\n```"),
    (wrong_commands, "```\nbebop eval-mtp tiny --rule rejection\n```"),
    (wrong_commands, "```\nbebop eval-mtp tiny --problems many\n```"),
    (wrong_commands, "```\nbebop eval-mtp\n```"),
    (wrong_commands, "```bash\n$ .venv/bin/bebop policy shwo tiny\n```"),
    (wrong_commands, "```\nbebop train-mtp configs/train-mtp-tony.yaml\n```"),
    (wrong_commands, "```\nbebop train-mtp configs/train-mtp-tiny.yaml loss.objectve=kl\n```"),
    (wrong_commands, "```\nbebop train-mtp configs/train-mtp-tiny.yaml \\\n  loss.objective=k1\n```"),
    (wrong_commands, "```\nOMP_NUM_THREADS=1 bebop doctor --jsn > doctor.json  # why not\n```"),
    (wrong_commands, "```\nmake install && make quickstrat\n```"),
    (wrong_commands, "```\nmake quickstart TORCH_INDEX=x\n```"),
    (wrong_commands, "```\npython -m bebop.bench.lose --json x\n```"),
    (wrong_commands, "```\npython -m bebop.bench.loss --jsen x\n```"),
    (wrong_commands, "```\n.venv/bin/python -m pytest tests/test_confic.py -q\n```"),
    (wrong_commands, "```\npip install 'bebop-rl[dta]'\n```"),
    (wrong_commands, "```\nscripts/gpu_chek.sh\n```"),
    (wrong_commands, "Run `bebop eval-mpt` first."),
    (wrong_commands, "Run `bebop eval-mtp --calibrated`."),
    (wrong_commands, "Run `make\ntset` first."),
    (dead_links, "[the log](docs/lag.md)"),
    (dead_links, "![a `picture`](picture.png)"),
    (dead_links, "[rules](AGENTS.md#rule)"),
    (dead_links, "# One\n[two](#two)"),
    (dead_links, "[log]: docs/lag.md"),
    (unknown_names, "`bebop.core.verify.rejecton`"),
    (unknown_names, "`bebop.core.verfy.rejection(...)`"),
    (unknown_names, "`bebop.engines.embedded.options.EmbeddedOptions.recompute_caches`"),
    (unknown_names, "`bebop.training.mtp_config.UnrollConfig.layouts`"),
    (unknown_names, "`tests/test_layers.py::test_the_package_keeps_the_rule`"),
    (unknown_names, "`tests/test_layer.py`"),
    (unknown_names, "`test_the_package_keeps_the_rule`"),
    (unknown_names, "```python\nfrom bebop.models.policy import load_polcy\n```"),
]
ALLOWED = """
# Two words: `code`

Not a command: bebop dances. `bebop COMMAND --help`, `bebop`, `bebop.json` and `bebop eval-mtp --calibrate` are fine,
and [so](https://example.org/missing) is [this](#two-words-code), [that](AGENTS.md#rules) and `configs/<command>.yaml`.
`bebop.core.verify.rejection`, `bebop.engines.embedded.options.EmbeddedOptions.lean`, `bebop.rl`, `make test`,
`bebop.core.streams.Purpose.DRAFT`, `bebop.training.mtp_config.UnrollConfig.layout`, `tests/test_layers.py`,
`tests/test_layers.py::test_the_package_keeps_the_rules`.

```
bebop/
  core/      what is in it, "unbalanced
$ bebop eval-mtp tiny --rules rejection --problems 20 --json > out.json && make test WORKERS=4   # a comment's worth
CUDA_VISIBLE_DEVICES=0 .venv/bin/bebop train-mtp configs/train-mtp-tiny.yaml policy=tiny \\
  loss.objective=kl steps=300
python -m bebop.bench.loss --hidden 128 --json loss.json
bebop --help
error: this is output
```
"""


@pytest.mark.parametrize(("check", "text"), PLANTED)
def test_a_planted_mistake_is_found(check: Check, text: str) -> None:
    assert list(check(Document(path=ROOT / "planted.md", text=text + "\n")))


def test_what_is_right_is_let_through() -> None:
    assert problems(Document(path=ROOT / "allowed.md", text=ALLOWED)) == []


def test_a_command_is_parsed_and_not_run(tmp_path: Path) -> None:
    text = f"```\nbebop train-mtp configs/train-mtp-tiny.yaml policy=tiny run={tmp_path / 'run'}\n```\n"
    assert problems(Document(path=ROOT / "run.md", text=text)) == []
    assert list(tmp_path.iterdir()) == []
