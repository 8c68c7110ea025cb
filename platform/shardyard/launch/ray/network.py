"""The network settings of ranks: variables of gloo and NCCL for one host, each with its reason.

Every rank derives them on its own host, because the names of interfaces differ between hosts. Variables set by the host
are never changed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from shardyard.errors import HardwareError
from shardyard.recipe.schema import Network

# Variables of the launching shell that concern ranks; a cluster's workers do not inherit that shell.
FORWARDED_PREFIXES = ("NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_DISTRIBUTED_", "FI_", "OFI_NCCL_")
# torch kills a process whose NCCL watchdog makes no progress for this long.
HEARTBEAT_SECONDS = 480
_SHORTEST_HEARTBEAT_SECONDS = 60
_RDMA_DEVICES = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class RdmaDevice:
    """An RDMA device: its kernel driver, such as `efa` or `mlx5_core`, and its link layer, InfiniBand or Ethernet."""

    name: str
    driver: str
    link: str


@dataclass(frozen=True)
class Host:
    """The network of a host.

    address: the host's address in Ray.
    interfaces: name → IP addresses.
    """

    address: str
    interfaces: Mapping[str, Sequence[str]]
    rdma: tuple[RdmaDevice, ...] = ()


@dataclass(frozen=True)
class Setting:
    """An environment variable of a rank and its reason; `given` if the host or the user set it."""

    name: str
    value: str
    reason: str
    given: bool = False

    def __str__(self) -> str:
        return f"{self.name}={self.value} ({self.reason})"


def derive(
    network: Network,
    host: Host,
    *,
    gpu: bool,
    one_host: bool,
    environment: Mapping[str, str],
    forwarded: Mapping[str, str] | None = None,
) -> list[Setting]:
    """The settings of one rank.

    Args:
        one_host: all ranks run on this host.
        environment: variables of the rank's process; they take precedence.
        forwarded: variables of the launching shell; they take precedence over derived ones.

    Raises:
        HardwareError: the host lacks the interface that the recipe names.
    """
    derived = {setting.name: setting for setting in _derived(network, host, gpu=gpu, one_host=one_host)}
    settings = []
    for name in sorted({*derived, *(forwarded or {}), *(name for name in environment if _is_forwarded(name))}):
        if name in environment:
            settings.append(Setting(name, environment[name], "set on this host", given=True))
        elif forwarded and name in forwarded:
            settings.append(Setting(name, forwarded[name], "set where the run was launched"))
        else:
            settings.append(derived[name])
    return settings


def this_host(address: str) -> Host:
    """The host of this process."""
    interfaces = {
        name: tuple(
            found.address.partition("%")[0] for found in addresses if found.family.name in ("AF_INET", "AF_INET6")
        )
        for name, addresses in psutil.net_if_addrs().items()
    }
    return Host(address, interfaces, rdma_devices(_RDMA_DEVICES))


def to_forward(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the launching shell to pass to ranks on other hosts."""
    return {name: value for name, value in environment.items() if _is_forwarded(name)}


def apply(settings: Sequence[Setting]) -> None:
    """Apply settings to the environment of this process."""
    os.environ.update({setting.name: setting.value for setting in settings if not setting.given})


def in_words(settings: Sequence[Setting], host: Host) -> list[str]:
    """A text per setting with its reason, and NCCL's own detection."""
    return [*map(str, settings), *_rdma_in_words(host.rdma)]


def rdma_devices(folder: Path) -> tuple[RdmaDevice, ...]:
    """RDMA devices that the kernel lists in /sys/class/infiniband; () if there are none."""
    if not folder.is_dir():
        return ()
    return tuple(
        RdmaDevice(device.name, (device / "device" / "driver").resolve().name, _link_layer(device))
        for device in sorted(folder.iterdir())
    )


def _derived(network: Network, host: Host, *, gpu: bool, one_host: bool) -> list[Setting]:
    settings = []
    chosen = _interface(network, host, one_host=one_host)
    if chosen is not None:
        name, reason = chosen
        settings.append(Setting("GLOO_SOCKET_IFNAME", name, reason))
        if gpu:
            # NCCL treats names as prefixes, except after an equals sign.
            settings.append(Setting("NCCL_SOCKET_IFNAME", network.interface or f"={name}", reason))
    if gpu:
        settings += _nccl(network, host, one_host=one_host)
    return settings


def _interface(network: Network, host: Host, *, one_host: bool) -> tuple[str, str] | None:
    """(name, reason); None if no interface has the address, as behind NAT: gloo then chooses."""
    usable = {name: addresses for name, addresses in host.interfaces.items() if addresses}
    if network.interface is not None:
        matching = sorted(name for name in usable if name.startswith(network.interface))
        if not matching:
            raise HardwareError(
                f"cluster.network.interface is {network.interface}, but the host {host.address} has the interfaces "
                f"{', '.join(sorted(usable))}; name one that all hosts have, or remove it."
            )
        exact = network.interface if network.interface in usable else matching[0]
        return exact, "cluster.network.interface"
    if one_host:
        loopback = next((name for name in usable if name in ("lo", "lo0")), None)
        return (loopback, "all ranks are on one host") if loopback else None
    carrying = next((name for name, addresses in usable.items() if host.address in addresses), None)
    return (carrying, f"has {host.address}, this host's address in Ray") if carrying else None


def _nccl(network: Network, host: Host, *, one_host: bool) -> list[Setting]:
    settings = []
    if network.rdma == "off":
        reason = "cluster.network.rdma is off"
        settings += [Setting("NCCL_IB_DISABLE", "1", reason), Setting("NCCL_NET", "Socket", reason)]
    elif not one_host and (efa := [device.name for device in host.rdma if device.driver == "efa"]):
        settings.append(Setting("FI_PROVIDER", "efa", f"EFA devices: {', '.join(efa)}"))
    if network.timeout < HEARTBEAT_SECONDS:
        seconds = max(_SHORTEST_HEARTBEAT_SECONDS, math.ceil(network.timeout))
        reason = f"cluster.network.timeout is {network.timeout:g} s, below torch's own {HEARTBEAT_SECONDS} s"
        settings.append(Setting("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(seconds), reason))
    return settings


def _rdma_in_words(devices: Sequence[RdmaDevice]) -> list[str]:
    words = []
    plain = [device for device in devices if device.driver != "efa"]
    if roce := [device.name for device in plain if device.link == "Ethernet"]:
        words.append(f"RoCE on {', '.join(roce)}: NCCL chooses the GID itself unless NCCL_IB_GID_INDEX is set")
    if infiniband := [device.name for device in plain if device.link == "InfiniBand"]:
        words.append(f"InfiniBand on {', '.join(infiniband)}: detected by NCCL")
    return words


def _link_layer(device: Path) -> str:
    ports = sorted(device.glob("ports/*/link_layer"))
    return ports[0].read_text(encoding="utf-8").strip() if ports else ""


def _is_forwarded(name: str) -> bool:
    return name.startswith(FORWARDED_PREFIXES)
