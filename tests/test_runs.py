"""Run directories, metrics files and atomic writes: nothing half-written, nothing lost, nothing misread."""

import json
import math
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bebop import runs
from bebop.config import ConfigModel
from bebop.dashboards import DashboardConfig, HostedRun, TensorBoard, open_dashboard
from bebop.errors import UserError
from bebop.files import atomic_directory, atomic_file, atomic_write
from bebop.hardware import hardware_line, processor
from bebop.metrics import Mean, MetricsWriter, read_metrics
from bebop.runs import RunDirectory, source_revision


class Config(ConfigModel):
    seed: int = 3
    lr: float = 1e-4


COMMAND = ["bebop", "train-sft", "a config.yaml", "train.lr=1e-4"]


def test_a_run_says_where_it_came_from(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "runs" / "first", Config(lr=2e-5), COMMAND, seed=3)
    run = RunDirectory.open(tmp_path / "runs" / "first")
    (provenance,) = run.provenance()
    assert run.config(Config) == Config(lr=2e-5)
    assert provenance.command == "bebop train-sft 'a config.yaml' train.lr=1e-4"
    assert provenance.seed == 3
    assert {"bebop", "torch", "transformers"} <= provenance.versions.keys()
    assert "cores of" in provenance.hardware
    assert provenance.time.endswith("+00:00")


def test_a_resumption_is_added_to_the_provenance(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", Config(), COMMAND, seed=3)
    run.record_resumption(["bebop", "resume"])
    assert [record.command for record in run.provenance()][1:] == ["bebop resume"]


def test_a_directory_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(UserError, match="already holds something"):
        RunDirectory.create(tmp_path, Config(), COMMAND)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt"]


def started(path: Path, config: ConfigModel) -> RunDirectory:
    """A run with something to go on from."""
    run = RunDirectory.create_or_resume(path, config, COMMAND)
    run.checkpoints_path.mkdir()
    return run


def test_a_run_is_resumed_with_its_own_settings_alone(tmp_path: Path) -> None:
    run = started(tmp_path / "run", Config())
    assert RunDirectory.create_or_resume(tmp_path / "run", Config(), ["again"]) == run
    assert [record.command for record in run.provenance()][1:] == ["again"]
    with pytest.raises(UserError, match=r"holds a run with other settings \(seed 3, now 4\)"):
        RunDirectory.create_or_resume(tmp_path / "run", Config(seed=4), COMMAND)


def test_a_run_that_failed_before_its_first_step_is_started_anew(tmp_path: Path) -> None:
    RunDirectory.create_or_resume(tmp_path / "run", Config(), COMMAND)
    (tmp_path / "run" / "workers").mkdir()
    (tmp_path / "run" / ".config.yaml.abc.part").write_text("half")
    run = RunDirectory.create_or_resume(tmp_path / "run", Config(seed=4), ["corrected"])
    assert run.config(Config) == Config(seed=4)
    assert [record.command for record in run.provenance()] == ["corrected"]


def test_an_empty_directory_becomes_a_run(tmp_path: Path) -> None:
    assert RunDirectory.create_or_resume(tmp_path, Config(), COMMAND).config(Config) == Config()


def test_a_setting_that_may_differ_is_taken_over_and_no_other(tmp_path: Path) -> None:
    started(tmp_path / "run", Config())
    run = RunDirectory.create_or_resume(tmp_path / "run", Config(seed=4), COMMAND, may_differ=("seed",))
    assert run.config(Config) == Config(seed=4)
    with pytest.raises(UserError, match="holds a run with other settings"):
        RunDirectory.create_or_resume(tmp_path / "run", Config(), COMMAND)


def test_a_run_that_was_killed_while_it_was_made_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(runs, "to_yaml", kill)
        RunDirectory.create_or_resume(tmp_path / "run", Config(), COMMAND)
    assert not RunDirectory(tmp_path / "run").config_path.exists()
    assert RunDirectory.create_or_resume(tmp_path / "run", Config(), COMMAND).config(Config) == Config()


def test_a_file_in_the_place_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="already holds something"):
        RunDirectory.create(tmp_path / "run", Config(), COMMAND)


def test_what_is_not_a_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory \(it has no config.yaml\)"):
        RunDirectory.open(tmp_path)


def test_a_damaged_provenance_is_named(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", Config(), COMMAND)
    (run.path / "provenance.json").write_text("[{")
    with pytest.raises(UserError, match=r"provenance\.json"):
        run.provenance()


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


def test_the_revision_is_that_of_the_source_and_says_when_it_was_changed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    assert source_revision(package) is None
    git(tmp_path, "init", "-q")
    assert source_revision(package) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = source_revision(package)
    assert clean is not None and len(clean) == 40
    (package / "a.py").write_text("x = 2\n")
    assert source_revision(package) == f"{clean}+changes"


def test_the_revision_of_a_repository_around_the_installation_is_not_ours(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "package"
    package.mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert source_revision(package) is None


def test_means_add_as_sums_over_counts() -> None:
    parts = [Mean(1.0, 1), Mean(9.0, 3)]
    assert sum(parts, Mean()).value == 2.5
    assert math.isnan(Mean().value)


values = (
    st.floats(allow_nan=False)
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.sampled_from(["NaN", "Infinity", "-Infinity", "null", "\ud800"])
    | st.builds(Mean, st.floats(0, 9), st.integers(0))
)


@given(rows=st.lists(st.dictionaries(st.text().filter(lambda name: name not in ("step", "time")), values, max_size=4)))
def test_rows_are_read_as_written(rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step, row in enumerate(rows):
            writer.write(step, row)
    read = read_metrics(path)
    assert [(row.step, row.values) for row in read] == list(enumerate(rows))


def test_non_finite_numbers_are_json_for_everyone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": math.nan, "bound": -math.inf})
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (row,) = read_metrics(path)
    assert math.isnan(row.values["loss"]) and row.values["bound"] == -math.inf  # pyright: ignore[reportArgumentType]


def test_a_truncated_last_line_is_ignored_and_then_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": 2.0})
    whole = path.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:length])
        assert [row.step for row in read_metrics(path)] == [1]
    with MetricsWriter(path) as writer:
        writer.write(3, {"loss": 3.0})
    assert [row.step for row in read_metrics(path)] == [1, 3]


@pytest.mark.parametrize(
    "line", ["{", "[1]", "3", '{"time": 1}', '{"step": 1, "time": 1, "a": [2]}', '{"step": 1, "time": 1, "a": {}}']
)
def test_a_damaged_earlier_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 1.0}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not a row of metrics"):
        read_metrics(path)


def test_a_resumed_run_writes_later_steps_again(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", Config(), COMMAND)
    with run.metrics_writer() as writer:
        for step in range(1, 6):
            writer.write(step, {"attempt": 1})
    with run.metrics_writer(keep_through=3) as writer:
        writer.write(4, {"attempt": 2})
    assert [(row.step, row.values["attempt"]) for row in run.metrics()] == [(1, 1), (2, 1), (3, 1), (4, 2)]


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)

    def write_many(worker: int) -> None:
        for step in range(50):
            writer.write(step, {"worker": worker, "text": "x" * 5000})

    threads = [threading.Thread(target=write_many, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert len(read_metrics(path)) == 200


def test_names_of_the_row_itself_cannot_be_metrics(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer, pytest.raises(AssertionError, match="step"):
        writer.write(1, {"step": 2.0})


class Recorded:
    """A dashboard that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float]]] = []
        self.num_closed = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append((step, dict(values)))

    def close(self) -> None:
        self.num_closed += 1


def test_dashboards_get_the_numbers_and_are_closed_once(tmp_path: Path) -> None:
    dashboard = Recorded()
    writer = MetricsWriter(tmp_path / "metrics.jsonl", dashboards=[dashboard])
    writer.write(4, {"loss": 1, "mean": Mean(3.0, 2), "note": "text"})
    writer.close()
    writer.close()
    assert dashboard.calls == [(4, {"loss": 1.0, "mean": 1.5})]
    assert dashboard.num_closed == 1


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_missing_dashboard_names_the_command(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("bebop.dashboards.importlib.import_module", missing)
    with pytest.raises(UserError, match=f"pip install {kind}"):
        open_dashboard(DashboardConfig.model_validate({"kind": kind}), tmp_path)


def test_a_dashboard_that_is_broken_itself_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> None:
        raise ModuleNotFoundError("No module named 'protobuf'", name="protobuf")

    monkeypatch.setattr("bebop.dashboards.importlib.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="protobuf"):
        open_dashboard(DashboardConfig(kind="wandb"), tmp_path)


def test_a_hosted_run_is_started_logged_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    started = SimpleNamespace(
        log=lambda values, step: calls.append(("log", step, values)), finish=lambda: calls.append(("finish",))
    )
    module = SimpleNamespace(init=lambda **options: calls.append(("init", options)) or started)
    monkeypatch.setattr("bebop.dashboards.importlib.import_module", lambda name: module)
    dashboard = open_dashboard(DashboardConfig(kind="wandb", project="p"), tmp_path / "run-7")
    dashboard.log(3, {"loss": 1.0})
    dashboard.close()
    options = {"project": "p", "name": "run-7", "dir": str(tmp_path / "run-7")}
    assert isinstance(dashboard, HostedRun)
    assert calls == [("init", options), ("log", 3, {"loss": 1.0}), ("finish",)]


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    dashboard = open_dashboard(DashboardConfig(kind="tensorboard"), tmp_path)
    dashboard.log(1, {"draft/accept_rate@2": 0.5})
    dashboard.close()
    assert isinstance(dashboard, TensorBoard)
    assert b"draft/accept_rate@2" in b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    atomic_write(target, "old")
    with pytest.raises(RuntimeError), atomic_file(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_the_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    with atomic_file(target) as part:
        part.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"


def test_an_atomic_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("x")
    atomic_write(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    with atomic_directory(target) as part:
        (part / "deep").mkdir()
        (part / "deep" / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_directory(target) as part:
        (part / "b").write_text("2")
        raise RuntimeError
    assert (target / "deep" / "a").read_text() == "1"
    with atomic_directory(target) as part:
        (part / "b").write_text("2")
    assert os.listdir(target) == ["b"]
    assert os.listdir(tmp_path) == ["step-1"]


CPUINFO = "processor\t: 0\nmodel name\t: Example 9\nflags\t\t: fpu {flags} sse\nprocessor\t: 1\nmodel name\t: Other\n"


@pytest.mark.parametrize(
    ("flags", "features", "has_bf16"),
    [
        ("avx2", ("avx2",), False),
        ("avx2 avx512f", ("avx2", "avx512f"), False),
        ("avx2 avx512f avx512_bf16", ("avx2", "avx512f", "avx512_bf16"), True),
        ("amx_bf16", ("amx_bf16",), True),
    ],
)
def test_the_processor_is_read(tmp_path: Path, flags: str, features: tuple[str, ...], has_bf16: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO.format(flags=flags))
    cpu = processor(path)
    assert (cpu.name, cpu.features, cpu.has_bf16) == ("Example 9", features, has_bf16)


def test_a_machine_without_cpuinfo_has_a_processor_too(tmp_path: Path) -> None:
    cpu = processor(tmp_path / "none")
    assert cpu.name and cpu.num_cores >= 1 and cpu.features == ()
    assert "\n" not in hardware_line()
