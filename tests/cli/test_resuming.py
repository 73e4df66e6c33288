"""Run directories of commands: one process at a time, settings that may change, a full disk named."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from bebop.cli import train_mtp, train_rl, train_sft
from bebop.cli.resuming import full_disk_explained, open_run
from bebop.config import ConfigModel, different_settings
from bebop.errors import UserError
from bebop.rl.config import TrainRL
from bebop.runs import RunDirectory
from bebop.training.mtp_config import TrainMTP
from bebop.training.sft import TrainSFT

OPEN_IT_TOO = """
import sys
from pathlib import Path
from bebop.cli.resuming import open_run
from bebop.config import ConfigModel
try:
    with open_run(Path(sys.argv[1]), ConfigModel(), 0, ()):
        print("opened")
except Exception as error:
    print(error)
"""


class Config(ConfigModel):
    lr: float = 0.1
    seed: int = 0


def another_process(path: Path) -> str:
    done = subprocess.run([sys.executable, "-c", OPEN_IT_TOO, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_run_is_one_process_at_a_time_and_is_not_touched_by_another(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", Config(), 0, ()) as run:
        before = (run.config_path.read_bytes(), len(run.provenance()))
        assert "another process is working on the run" in another_process(tmp_path / "run")
        assert (run.config_path.read_bytes(), len(run.provenance())) == before
    assert another_process(tmp_path / "other") == "opened"


def test_a_run_goes_on_with_what_may_differ_and_with_nothing_else(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", Config(), 0, ()) as run:
        run.checkpoints_path.mkdir()
    with open_run(tmp_path / "run", Config(lr=0.05), 0, ("lr",)) as run:
        assert run.config(Config).lr == 0.05
    with pytest.raises(UserError, match=r"seed 0, now 1"), open_run(tmp_path / "run", Config(seed=1), 0, ("lr",)):
        pass


def test_a_file_in_the_place_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="is a file; name another run"), open_run(tmp_path / "run", Config(), 0, ()):
        pass


@pytest.mark.parametrize(
    ("model", "may_differ"),
    [(TrainSFT, train_sft.MAY_DIFFER), (TrainMTP, train_mtp.MAY_DIFFER), (TrainRL, train_rl.MAY_DIFFER)],
)
def test_what_may_differ_are_settings_that_there_are(model: type[ConfigModel], may_differ: tuple[str, ...]) -> None:
    written = model.model_validate({"policy": "tiny", "output": "out", "run": "run"}).model_dump(by_alias=True)
    for name in may_differ:
        section = written
        for key in name.split("."):
            assert key in section, name
            section = section[key]


def test_differing_settings_are_named_with_their_section() -> None:
    before = TrainRL.model_validate({"policy": "tiny", "output": "out", "run": "run"})
    after = before.model_validate({**before.model_dump(by_alias=True), "async": {"max_lag": 0}, "steps": 7})
    assert different_settings(before, after) == ["steps 60, now 7", "async.max_lag 1, now 0"]
    assert different_settings(before, after, ("steps", "async")) == []
    assert different_settings(before, after, ("asyn", "step")) != []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error (os error 28)")]
)
def test_a_full_disk_is_explained(tmp_path: Path, error: Exception) -> None:
    explained = pytest.raises(UserError, match=r"no space left for the run .* at the beginning")
    with explained, full_disk_explained(RunDirectory(tmp_path)):
        raise error


def test_other_errors_of_files_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="denied"), full_disk_explained(RunDirectory(tmp_path)):
        raise OSError(errno.EACCES, "denied")
