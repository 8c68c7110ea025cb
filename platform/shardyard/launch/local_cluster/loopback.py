"""`ray start` of a node that listens on loopback alone, where Ray's own takes another address of the host on Linux."""

from __future__ import annotations

from ray._private import ray_constants, services
from ray.scripts import scripts

from shardyard.launch.local_cluster.nodes import LOOPBACK


def main() -> None:
    """Carry out a command line of `ray`, with loopback as the address of this host.

    Ray has a switch for this (`nodes.LOOPBACK_ENVIRONMENT`), made for systems on which it supports a single node.
    Further nodes need it to be off in here, and on in all that they start.
    """
    services.get_node_ip_address = lambda address=None: LOOPBACK
    ray_constants.ENABLE_RAY_CLUSTER = True
    scripts.main()


if __name__ == "__main__":
    main()
