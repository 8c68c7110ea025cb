"""The configurations of cluster/cloud/ as Ray's launcher reads them, without any cloud."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

CLOUD = Path(__file__).resolve().parents[3] / "cluster" / "cloud"
FILES = ("aws", "gcp")


def load(name: str) -> dict[str, Any]:
    """The configuration as `ray up` completes it."""
    with (CLOUD / f"{name}.yaml").open() as file:
        prepared: dict[str, Any] = prepare_config(YAML(typ="safe").load(file))
    return prepared


def test_every_configuration_is_checked() -> None:
    assert {path.stem for path in CLOUD.glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    config = load(name)
    validate_config(config)
    config["avaliable_node_types"] = {}
    with pytest.raises(jsonschema.ValidationError, match="avaliable_node_types"):
        validate_config(config)


@pytest.mark.parametrize("name", FILES)
def test_every_node_asks_for_the_token_that_is_copied_to_it(name: str) -> None:
    config = load(name)
    ((remote, local),) = config["file_mounts"].items()
    assert local == "~/.shardyard/cloud"
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
        assert f"RAY_AUTH_TOKEN_PATH={remote.replace('~', '$HOME')}/token" in command
        assert "RAY_enable_metrics_collection=0" in command
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", FILES)
def test_nothing_of_rays_defaults_installs_another_ray(name: str) -> None:
    config = load(name)
    commands = [*config["setup_commands"], *config["head_setup_commands"], *config["worker_setup_commands"]]
    assert commands
    assert not [command for command in commands if "ray" in command]
    assert set(config["available_node_types"]) == {"head", "gpu-spot"}


@pytest.mark.parametrize("name", FILES)
def test_the_head_stays_and_workers_are_spot(name: str) -> None:
    types = load(name)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu-spot"]["resources"]["GPU"] > 0
    assert types["gpu-spot"]["min_workers"] == 0
    spot = {"aws": ("InstanceMarketOptions", "MarketType", "spot"), "gcp": ("scheduling", "provisioningModel", "SPOT")}
    section, key, value = spot[name]
    assert types["gpu-spot"]["node_config"][section][key] == value
    assert section not in types["head"]["node_config"]


@pytest.mark.parametrize("name", FILES)
def test_every_value_to_fill_in_is_explained(name: str) -> None:
    text, page = (CLOUD / f"{name}.yaml").read_text(), (CLOUD / "README.md").read_text()
    markers = set(re.findall(r"CHANGE_ME_\w+", text))
    assert len(markers) >= 3
    assert {marker for marker in markers if f"`{marker}`" not in page} == set()
    (library,) = [command.partition('"')[2].partition('"')[0] for command in load(name)["head_setup_commands"]]
    assert f'"{library}"' in page
