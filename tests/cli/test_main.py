"""The command line as a whole: help at once, one line per mistake, exit codes."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import typer

from bebop.cli import main
from bebop.cli.main import COMMANDS, Command, build_app, run
from bebop.cli.options import ConfigArgument, DryRunOption, OverridesArgument, resolve
from bebop.config import ConfigModel
from bebop.errors import UserError

HEAVY = {"torch", "transformers", "numpy", "scipy", "matplotlib", "plotly", "vllm", "ray"}


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as stop:
        run(arguments)
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def mount(monkeypatch: pytest.MonkeyPatch, target: object) -> None:
    """Make `bebop probe` run ``target``."""
    module = type(sys)("bebop_probe_command")
    module.command = target  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "bebop_probe_command", module)
    row = Command(name="probe", target="bebop_probe_command:command", summary="Probe.", panel="Tests")
    monkeypatch.setattr(main, "build_app", lambda selected: build_app(selected, (row,)))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bebop.cli.main import run\n"
        "try:\n    run(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_lists_every_command_and_fits_a_screen() -> None:
    environment = os.environ | {"COLUMNS": "80", "TERM": "dumb"}
    code = "from bebop.cli.main import run; run(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert len(done.stdout.splitlines()) <= 40
    for command in COMMANDS:
        assert f" {command.name} " in done.stdout


def lines_of_commands() -> Iterator[tuple[str, ...]]:
    """Every command, with the sub-commands of groups."""
    for row in COMMANDS:
        module, _, attribute = row.target.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            callbacks = [command.callback for command in target.registered_commands]
            yield from ((row.name, callback.__name__) for callback in callbacks if callback is not None)
        else:
            yield (row.name,)


def test_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for words in lines_of_commands():
        code, out, _ = outcome(capsys, *words, "--help")
        example = out.partition("Example")[2]
        assert code == 0
        assert f"bebop {' '.join(words)}" in " ".join(example.split()), words


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "--version")
    assert (code, out.split()[0]) == (0, "bebop")


def test_an_unknown_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = outcome(capsys, "doktor")
    assert code == 2
    assert "doktor" in err


def test_a_users_mistake_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise UserError("there is no policy 'tony'; did you mean 'tiny'?")

    mount(monkeypatch, command)
    assert outcome(capsys, "probe") == (2, "", "error: there is no policy 'tony'; did you mean 'tiny'?\n")


def test_a_full_disk_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise OSError(28, "No space left on device", "runs/a")

    mount(monkeypatch, command)
    assert outcome(capsys, "probe") == (2, "", "error: runs/a: No space left on device\n")


def test_an_error_of_the_machine_without_a_file_names_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise OSError(28, "No space left on device")

    mount(monkeypatch, command)
    assert outcome(capsys, "probe") == (2, "", "error: No space left on device\n")


def test_an_interruption_is_one_line_and_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    mount(monkeypatch, command)
    code, out, err = outcome(capsys, "probe")
    assert (code, out, err.strip()) == (130, "", "interrupted")


@pytest.mark.parametrize("error", [RuntimeError("ours"), OSError(2, "No such file", "lost")])
def test_our_own_mistakes_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise error

    mount(monkeypatch, command)
    with pytest.raises(type(error)) as caught:
        run(["probe"])
    assert caught.value is error


class Settings(ConfigModel):
    lr: float = 1e-3
    seed: int = 0


def show(config: ConfigArgument, changes: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    settings = resolve(Settings, config, changes, dry_run=dry_run)
    print("ran with", settings.lr)


def test_a_dry_run_prints_the_resolved_config_and_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, show)
    path = tmp_path / "config.yaml"
    path.write_text("seed: 4\n")
    assert outcome(capsys, "probe", str(path), "lr=1e-4", "--dry-run") == (0, "lr: 0.0001\nseed: 4\n", "")
    assert outcome(capsys, "probe", str(path), "lr=1e-4") == (0, "ran with 0.0001\n", "")


def test_a_wrong_override_on_the_command_line_is_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, show)
    path = tmp_path / "config.yaml"
    path.write_text("seed: 4\n")
    code, out, err = outcome(capsys, "probe", str(path), "lrr=1")
    assert (code, out) == (2, "")
    assert err == "error: override 'lrr=1': unknown key lrr; did you mean lr?\n"


def test_groups_of_commands_can_be_mounted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    group = typer.Typer()

    @group.command()
    def first(name: Annotated[str, typer.Argument()]) -> None:
        print("first", name)

    @group.command()
    def second() -> None:
        print("second")

    mount(monkeypatch, group)
    assert outcome(capsys, "probe", "first", "x") == (0, "first x\n", "")
