"""Modules that are run with ``python -m`` show a person's mistake as ``bebop`` does: a sentence, and exit code 2."""

import runpy
import sys

import pytest


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bebop.report.seeds", "a=typo"], "there is no run typo; give a run directory"),
        (["bebop.bench.objectives", "absent.yaml"], "there is no config file absent.yaml; give the path"),
        (["bebop.bench.objectives", "polices=tiny"], "unknown key polices; did you mean policy?"),
        (["bebop.training.tiny", "make"], "write `init DIRECTORY` or"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(words[0], run_name="__main__")
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert sentence in shown
