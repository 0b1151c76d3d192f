"""The YAML files in configs/ are runs that this program knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_occ.config import TrainConfig, read_yaml
from vlm_occ.cut3r_training import Cut3rTrainConfig
from vlm_occ.paper_train import PaperTrainConfig
from vlm_occ.run_config import check_config, trains

FOLDER = Path(__file__).parents[1] / "configs"
KINDS = {"model": TrainConfig, "system": PaperTrainConfig, "network": Cut3rTrainConfig}
RUNS = sorted(FOLDER.glob("*.yaml"))
OURS = [path for path in RUNS if trains(path) == "model"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_config_is_read_and_passes_the_checks_of_a_run(path: Path) -> None:
    config = read_yaml(KINDS[trains(path)], path)
    check_config(config)
    assert config.out.startswith("runs/")


def test_quantised_configs_name_a_base_that_can_be_quantised() -> None:
    configs = [read_yaml(TrainConfig, path) for path in OURS]
    quantised = [config.model for config in configs if config.model.quantization != "none"]
    assert quantised and all(model.lora is not None and "/" in model.base for model in quantised)
