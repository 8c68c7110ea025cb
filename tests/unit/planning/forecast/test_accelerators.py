"""The table of accelerators and links: what it knows, what is asked for, and how another one is described."""

from __future__ import annotations

import re

import pytest

from shardyard.errors import UsageError
from shardyard.planning.forecast.accelerators import ACCELERATORS, accelerator_of, by_device
from shardyard.planning.forecast.hardware import hardware_of
from shardyard.planning.forecast.links import LINKS, NETWORKS, network_of


def test_each_accelerator_has_numbers_of_a_known_order_and_a_source() -> None:
    names = [name for one in ACCELERATORS for name in (one.name, *one.aliases)]
    assert len(names) == len(set(names))
    for one in ACCELERATORS:
        assert 12 * 2**30 <= one.memory_bytes <= 300 * 2**30, one.name
        assert 3e11 <= one.bandwidth <= 1e13, one.name
        assert 50 <= one.watts <= 1500, one.name
        assert 0.5 <= one.matmul_share < 0.9, one.name
        assert one.peaks["fp16"] > one.peaks["fp32"], one.name
        assert one.source
        assert one.link in LINKS.values()


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb-pcie"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_device_is_found_by_its_name_in_pytorch(device: str, name: str | None) -> None:
    found = by_device(device)
    assert (found.name if found else None) == name


def test_aliases_and_changed_numbers() -> None:
    assert accelerator_of("H100") is accelerator_of("h100-80gb") is accelerator_of("h100_80gb")
    limited = accelerator_of("h100-80gb:watts=350,memory=96GiB")
    assert limited.memory_bytes == 96 * 2**30
    assert limited.peaks == accelerator_of("h100").peaks
    assert limited.clock == pytest.approx(0.5**0.5)
    assert accelerator_of("h100").clock == 1.0
    assert "350 as given" in limited.source or "watts 350" in limited.source


def test_another_accelerator_is_described_by_hand() -> None:
    mine = accelerator_of("mine:memory=80GiB,bandwidth=3.35e12,bf16=989e12,link=nvlink4,watts=700")
    assert (mine.memory_bytes, mine.bandwidth, mine.peaks) == (80 * 2**30, 3.35e12, {"bf16": 989e12})
    assert mine.link.rate == 450e9
    assert accelerator_of("mine:memory=80GiB,bandwidth=1e12,fp16=1e14,link=5e9,watts=70").link.rate == 5e9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h300", r"--gpu h300 is not in the table\. Did you mean h200\? Known are gb200, b200.*Describe another one"),
        ("mine:memory=80GiB", r"it lacks bandwidth, link, watts, bf16 \(or another precision\); write it as mine:"),
        ("h100:colour=red", r"'colour=red' is none of memory=…, bandwidth=…"),
        ("h100:watts=-1", r"watts is '-1', and not a number above 0"),
        ("h100:memory=much", r"memory: 'much' is not a size"),
        ("h100:link=fast", r"link is 'fast'; write bytes per second.*nvlink4"),
    ],
)
def test_what_is_not_known_is_asked_for(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        accelerator_of(text)
    assert re.search(message, str(caught.value))


def test_networks() -> None:
    assert network_of("400gx8").rate == NETWORKS["dgx-h100"].rate == 400e9
    assert network_of("100G").rate == 12.5e9
    assert network_of("efa-p4d").rate == 50e9
    for text in ("fast", "0gx8", "400gx0"):
        with pytest.raises(UsageError, match=r"Write the network cards of a node as 400gx8.*dgx-h100"):
            network_of(text)


def test_nodes_need_a_network_and_are_full() -> None:
    assert hardware_of("h100", 4).per_node == 4
    assert hardware_of("h100", 64, network="400gx8").nodes == 8
    with pytest.raises(UsageError, match="64 GPUs with 8 in a node need a network: --network 400gx8"):
        hardware_of("h100", 64)
    with pytest.raises(UsageError, match="--gpus 12 do not fill nodes of 8; set --per-node to 6, 4, 3, 2, 1"):
        hardware_of("h100", 12, network="400gx8")
    with pytest.raises(UsageError, match="--gpus 0: at least one"):
        hardware_of("h100", 0)
    with pytest.raises(UsageError, match="--per-node 0: at least one"):
        hardware_of("h100", 8, per_node=0)
    with pytest.raises(UsageError, match="a price is not negative"):
        hardware_of("h100", 8, price=-1.0)


def test_a_ring_takes_the_narrowest_link_and_shares_the_cards_of_a_node() -> None:
    hardware = hardware_of("h100", 64, network="400gx8")
    assert hardware.bus(1, 8) == pytest.approx(0.8 * 450e9)
    assert hardware.bus(1, 64) == pytest.approx(0.8 * 400e9)
    # Eight tensor-parallel ranks of a node reduce with other nodes at the same time, each over one card.
    assert hardware.bus(8, 8) == pytest.approx(0.8 * 50e9)
    assert hardware.latency(1, 64) > hardware.latency(1, 8)


def test_an_exchange_over_nodes_waits_for_the_network() -> None:
    hardware = hardware_of("h100", 64, network="400gx8")
    within, over = hardware.exchange(1, 8, 8e9), hardware.exchange(1, 64, 8e9)
    assert within == pytest.approx(7e9 / (0.8 * 450e9), rel=0.01)
    assert over == pytest.approx(8e9 * 56 / 64 / (0.8 * 50e9), rel=0.01)
    assert hardware.exchange(1, 1, 8e9) == 0
