"""``bebop bench``: every figure reaches the screen and the file; mistakes are named."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from bebop.cli.bench import decode_table
from bebop.cli.main import run


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as stop:
        run(["bench", *arguments])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_decoding_is_timed_into_a_table_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decode.json"
    small = ("--batch", "1,2", "--k", "0,2,auto", "--tokens", "8", "--repetitions", "1", "--dtype", "float32")
    code, out, err = bench(capsys, "decode", *small, "--json", str(file))
    assert code == 0
    figures = json.loads(file.read_text())
    assert figures["batches"].keys() == {"1", "2"}
    arms = figures["batches"]["2"]["arms"]
    assert arms.keys() == {"k0", "k2", "kauto", "generate"}
    assert f"{arms['k2']['decode_tokens_per_second']['median']:.0f}" in out
    assert "bench decode 2/2" in err


def test_losses_are_timed_as_json_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--chains", "4", "--hidden", "4", "--vocabulary", "50", "--rounds", "1", "--objectives", "ce,e2e_tv")
    code, out, _ = bench(capsys, "loss", *small, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out)["seconds"].keys() == {"eager/ce", "eager/e2e_tv", "fused/ce", "fused/e2e_tv"}


def test_updates_are_timed_into_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--tasks", "math", "--groups", "1", "--group-size", "2", "--repetitions", "1", "--dtype", "float32")
    code, out, err = bench(capsys, "learn", *small)
    assert code == 0
    assert "shared over whole" in out
    assert "bench learn 2/2" in err


def test_the_table_of_decoding_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    arm = {
        "tokens_per_second": {"median": 98765.4, "min": 91234.5, "max": 99876.5},
        "accept_length": 3.456,
        "round_shares": {"draft": 0.25, "verify": 0.55, "sampling": 0.1, "bookkeeping": 0.1},
    }
    figures = {"arms": {"k0": arm, "kauto": arm, "generate": arm | {"round_shares": {}, "accept_length": None}}}
    figures["speed_over_k0"] = {"kauto": {"median": 1.5}, "generate": {"median": 0.5}}
    figures["decode_speed_over_k0"] = {"kauto": {"median": 2.0}}
    Console(width=80).print(decode_table({"batches": {"128": figures}}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert "…" not in "".join(lines) and "98765" in lines[2] and "9%" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("decode", "--k", "1,2"), "must include 0"),
        (("decode", "--k", "0,three"), "--k has 'three'"),
        (("decode", "--batch", "1,x"), "--batch has 'x'"),
        (("decode", "--rule", "greedy"), "no verification rule 'greedy'"),
        (("loss", "--objectives", "ce"), "objectives must include"),
        (("loss", "--dtype", "float8"), "float8"),
        (("loss", "/proc/none/loss.json"), "/proc/none/loss.json cannot be written"),
        (("loss", "/tmp"), "/tmp is a directory"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bench(capsys, *arguments)
    assert code == 2 and words in err
