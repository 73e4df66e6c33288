"""Configurations: what is read, what is refused, and in which words."""

import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from bebop.config import ConfigModel, load_config, to_yaml
from bebop.config_yaml import dump_yaml, parse_yaml
from bebop.errors import UserError


class Train(ConfigModel):
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    num_steps: int = 10
    families: tuple[str, ...] = ("math",)

    @model_validator(mode="after")
    def _steps_suffice(self) -> "Train":
        if self.num_steps < len(self.families):
            raise ValueError("num_steps must be at least the number of families")
        return self


class Dashboard(ConfigModel):
    project: str


class Root(ConfigModel):
    seed: int = 0
    policy: str = "tiny"
    train: Train = Train(num_steps=40)
    dashboard: Dashboard | None = None
    kind: Literal["ttt", "plain"] = "ttt"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(Root, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_file_changes_the_defaults_and_overrides_change_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 7\ntrain:\n  lr: 1e-4\n")
    config = load_config(Root, path, ["train.lr=3e-5", "train.lr=2e-5", "policy=smollm2"])
    assert config == Root(seed=7, policy="smollm2", train=Train(lr=2e-5, num_steps=40))


def test_a_partial_section_keeps_the_other_values_of_its_default() -> None:
    assert load_config(Root, None, ["train.lr=1"]).train.num_steps == 40
    assert Train().num_steps == 10


class Inner(ConfigModel):
    width: int = 1
    depth: int = 1


class Middle(ConfigModel):
    inner: Inner = Inner()
    width: int = 1


class Outer(ConfigModel):
    middle: Middle = Middle(inner=Inner(width=5))
    last: Inner = Inner()


def test_a_partial_section_within_a_section_does_so_too() -> None:
    assert load_config(Outer, None, ["middle.inner.depth=2"]).middle.inner == Inner(width=5, depth=2)


def test_of_keys_with_the_misplaced_name_the_outermost_and_then_the_first_is_meant() -> None:
    with pytest.raises(UserError, match=r"did you mean last\.depth\?"):
        load_config(Outer, None, ["depth=2"])
    with pytest.raises(UserError, match=r"did you mean middle\.width\?"):
        load_config(Outer, None, ["width=2"])


class Aliased(ConfigModel):
    asynchronous: int = Field(default=1, alias="async")


def test_a_key_is_named_as_it_is_written() -> None:
    with pytest.raises(UserError, match="the keys here are async"):
        load_config(Aliased, None, ["asynchronous=0"])


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(Root, write(tmp_path, "# nothing set\n")) == Root()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E3", -1000.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("-.inf", -math.inf),
        ("010", 10),
        ("0x10", 16),
        ("1:30", "1:30"),
        ("off", "off"),
        ("no", "no"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, a]", [1, "a"]),
        ("a=b", "a=b"),
    ],
)
def test_scalars_are_read_as_in_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text, "test")
    assert (type(parsed), parsed) == (type(value), value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
        max_leaves=8,
    )
)
@example(value={"\x85": "a\u2028b", "c": ["\r", "\u2029"]})
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert parse_yaml(dump_yaml(value), "test") == value


def test_a_resolved_config_is_read_back_equal(tmp_path: Path) -> None:
    config = Root(policy="1e-4", train=Train(lr=1e-5, families=("off", "code")), dashboard=Dashboard(project="null"))
    assert load_config(Root, write(tmp_path, to_yaml(config))) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Root().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_field_docstrings_are_descriptions() -> None:
    assert Train.model_fields["lr"].description == "Peak learning rate."


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lrr=1", "unknown key train.lrr; did you mean train.lr?"),
        ("lr=1", "unknown key lr; did you mean train.lr?"),
        ("train.sede=1", "unknown key train.sede; did you mean seed?"),
        ("dashboard.projct=x", "unknown key dashboard.projct; did you mean dashboard.project?"),
        ("train.qqq=1", "unknown key train.qqq; the keys here are families, lr, num_steps"),
        ("train.lr=fast", "train.lr should be a valid number"),
        ("train.lr=-1", "train.lr should be greater than 0, got -1"),
        ("train.num_steps=1.5", "train.num_steps should be a valid integer"),
        ("train=5", "train is a section of keys, got 5"),
        ("kind=kvshare", "kind should be 'ttt' or 'plain', got 'kvshare'"),
        ("1=2", "unknown key 1"),
        ("train.num_steps=0", "train: num_steps must be at least the number of families"),
    ],
)
def test_a_wrong_override_is_named_with_its_remedy(override: str, words: str) -> None:
    message = refusal(None, override)
    assert message.startswith(f"override '{override}'")
    assert words in message


@pytest.mark.parametrize("override", ["seed", "=1", "train..lr=1", ".lr=1"])
def test_an_override_without_key_and_value_is_refused(override: str) -> None:
    assert "not of the form key=value" in refusal(None, override)


def test_an_override_below_a_value_is_refused() -> None:
    assert "seed is not a section" in refusal(None, "seed=1", "seed.x=1")


def test_an_override_with_broken_yaml_is_named() -> None:
    assert refusal(None, "train.families=[a").startswith("override 'train.families=[a', line 1")


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("seed: 1\ntrain:\n  lrr: 2\n", "line 3", "did you mean train.lr?"),
        ("seed: 1\ntrain:\n  lr: fast\n", "line 3", "train.lr should be a valid number"),
        ("train:\n  families: [math, [code]]\n", "line 2", "train.families.1 should be a valid string"),
        ("dashboard: {}\n", "line 1", "dashboard.project is missing"),
        ("seed: 1\nseed: 2\n", "line 2", "key 'seed' is written twice"),
        ("seed: [1\n", "line 2", "malformed YAML"),
        ("seed: 1\n\tpolicy: x\n", "line 2", "malformed YAML"),
        ("a: *b\n", "line 1", "malformed YAML"),
        ("a: !!python/object:os.system x\n", "line 1", "malformed YAML"),
        ("a: \x07\n", "", "malformed YAML"),
        ("[1]: 2\n? {a: 1}\n: 3\n", "line", "malformed YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, where: str, words: str) -> None:
    path = write(tmp_path, text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert where in message
    assert words in message


def test_a_list_is_no_config(tmp_path: Path) -> None:
    assert "a config is a mapping" in refusal(write(tmp_path, "- 1\n"))


def test_several_problems_are_counted(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "seed: x\npolicy: 3\n")).endswith("(and 1 more)")


def test_a_file_that_is_missing_a_directory_or_binary_is_named(tmp_path: Path) -> None:
    assert "there is no config file" in refusal(tmp_path / "none.yaml")
    assert "there is no config file" in refusal(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"seed: \xff")
    assert "UTF-8" in refusal(binary)
