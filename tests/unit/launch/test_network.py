"""Settings of gloo and NCCL, from what a host's interfaces are called and which addresses they carry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardyard.errors import HardwareError
from shardyard.launch.ray.network import (
    Host,
    RdmaDevice,
    Setting,
    apply,
    derive,
    in_words,
    rdma_devices,
    this_host,
    to_forward,
)
from shardyard.recipe.schema import Network

LAN = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "eth0": ["10.0.0.7", "fe80::1"], "ib0": ["10.1.0.7"]}
EFA = RdmaDevice("rdmap0s6", "efa", "Unspecified")
ROCE = RdmaDevice("mlx5_0", "mlx5_core", "Ethernet")
INFINIBAND = RdmaDevice("mlx5_1", "mlx5_core", "InfiniBand")


def settings(
    network: Network | None = None,
    *,
    address: str = "10.0.0.7",
    gpu: bool = True,
    one_host: bool = False,
    rdma: tuple[RdmaDevice, ...] = (),
    environment: dict[str, str] | None = None,
    forwarded: dict[str, str] | None = None,
) -> dict[str, str]:
    found = derive(
        network or Network(),
        Host(address, LAN, rdma),
        gpu=gpu,
        one_host=one_host,
        environment=environment or {},
        forwarded=forwarded,
    )
    assert all(setting.reason for setting in found)
    return {setting.name: setting.value for setting in found}


def test_ranks_talk_over_the_interface_that_carries_the_address_of_ray() -> None:
    assert settings() == {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "=eth0"}
    assert settings(address="10.1.0.7", gpu=False) == {"GLOO_SOCKET_IFNAME": "ib0"}
    assert settings(one_host=True, gpu=False) == {"GLOO_SOCKET_IFNAME": "lo"}
    # Behind a translated address no interface carries it, and every guess could be wrong.
    assert settings(address="198.51.100.1") == {}


def test_the_recipe_names_an_interface_or_its_beginning() -> None:
    assert settings(Network(interface="ib")) == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib"}
    assert settings(Network(interface="eth0"), one_host=True, gpu=False) == {"GLOO_SOCKET_IFNAME": "eth0"}
    with pytest.raises(
        HardwareError, match=r"interface is bond, but the host 10\.0\.0\.7 has .*docker0, eth0, ib0, lo"
    ):
        settings(Network(interface="bond"))


def test_what_is_set_already_stays() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "docker0", "NCCL_DEBUG": "INFO", "HOME": "/root"}
    found = derive(
        Network(),
        Host("10.0.0.7", LAN),
        gpu=True,
        one_host=False,
        environment=environment,
        forwarded={"GLOO_SOCKET_IFNAME": "lo", "NCCL_ALGO": "Ring"},
    )
    assert [(setting.name, setting.value, setting.given) for setting in found] == [
        ("GLOO_SOCKET_IFNAME", "docker0", True),
        ("NCCL_ALGO", "Ring", False),
        ("NCCL_DEBUG", "INFO", True),
        ("NCCL_SOCKET_IFNAME", "=eth0", False),
    ]
    assert settings(forwarded={"NCCL_SOCKET_IFNAME": "ib0"})["NCCL_SOCKET_IFNAME"] == "ib0"
    assert to_forward({"NCCL_DEBUG": "INFO", "PATH": "/bin", "FI_PROVIDER": "tcp"}) == {
        "NCCL_DEBUG": "INFO",
        "FI_PROVIDER": "tcp",
    }


def test_rdma_is_left_alone_or_turned_off() -> None:
    off = {"NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket"}
    assert off.items() <= settings(Network(rdma="off"), rdma=(EFA,)).items()
    assert "FI_PROVIDER" not in settings(Network(rdma="off"), rdma=(EFA,))
    assert settings(rdma=(EFA, ROCE))["FI_PROVIDER"] == "efa"
    assert "FI_PROVIDER" not in settings(rdma=(EFA,), one_host=True)
    assert "NCCL_IB_DISABLE" not in settings(rdma=(ROCE, INFINIBAND))
    words = in_words([Setting("A", "1", "so")], Host("", {}, (ROCE, INFINIBAND, EFA)))
    assert words[0] == "A=1 (so)"
    assert "RoCE on mlx5_0" in words[1]
    assert "InfiniBand on mlx5_1" in words[2]


def test_a_short_time_out_shortens_the_heartbeat() -> None:
    assert settings(Network(timeout=90.5))["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "91"
    assert settings(Network(timeout=5))["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "60"
    assert "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC" not in settings(Network(timeout=1800))
    assert settings(Network(timeout=90, rdma="off"), gpu=False) == {"GLOO_SOCKET_IFNAME": "eth0"}


def test_devices_are_read_as_the_kernel_lists_them(tmp_path: Path) -> None:
    for name, driver, link in (("mlx5_0", "mlx5_core", "Ethernet"), ("rdmap0s6", "efa", "")):
        device = tmp_path / "infiniband" / name
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        (device / "device").mkdir(parents=True)
        (device / "device" / "driver").symlink_to(tmp_path / "drivers" / driver)
        if link:
            (device / "ports" / "1").mkdir(parents=True)
            (device / "ports" / "1" / "link_layer").write_text(f"{link}\n")
    assert rdma_devices(tmp_path / "infiniband") == (ROCE, RdmaDevice("rdmap0s6", "efa", ""))
    assert rdma_devices(tmp_path / "nothing") == ()


def test_this_host_has_a_loopback_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    host = this_host("127.0.0.1")
    (loopback,) = [name for name, addresses in host.interfaces.items() if "127.0.0.1" in addresses]
    found = derive(Network(), host, gpu=False, one_host=False, environment={})
    assert [(setting.name, setting.value) for setting in found] == [("GLOO_SOCKET_IFNAME", loopback)]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "elsewhere")
    apply(found)
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback
    apply([Setting("GLOO_SOCKET_IFNAME", "given", "", given=True)])
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback
