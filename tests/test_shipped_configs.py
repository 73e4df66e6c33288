"""The configurations under configs/ are what their commands take, and lead where other texts say."""

from pathlib import Path

import pytest

from bebop.bench.objective_config import ObjectiveBench
from bebop.config import ConfigModel, load_config, to_yaml
from bebop.models.names import BUILT_IN
from bebop.rl.config import TrainRL
from bebop.training.mtp_config import TrainMTP
from bebop.training.sft import TrainSFT

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
MODELS: dict[str, type[ConfigModel]] = {
    "train-sft": TrainSFT,
    "train-mtp": TrainMTP,
    "train-rl": TrainRL,
    "objectives": ObjectiveBench,
}


def model_of(path: Path) -> type[ConfigModel]:
    return MODELS[path.stem.rpartition("-")[0]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_is_valid_and_can_be_written_back(path: Path, tmp_path: Path) -> None:
    model = model_of(path)
    resolved = load_config(model, path)
    (tmp_path / "resolved.yaml").write_text(to_yaml(resolved))
    assert load_config(model, tmp_path / "resolved.yaml") == resolved


def test_every_family_has_its_configurations() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {f"{command}-{policy}" for command in ("train-sft", "train-mtp") for policy in ("tiny", "smollm2")}
    for path in CONFIGS:
        policy = load_config(model_of(path), path).model_dump().get("policy")
        assert policy in BUILT_IN or str(policy).startswith("build/"), path
