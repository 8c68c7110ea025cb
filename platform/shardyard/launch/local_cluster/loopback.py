"""`ray start` for a node that listens only on loopback; the original uses another address of the host on Linux."""

from __future__ import annotations

from ray.scripts import scripts

from shardyard.launch.local_cluster.nodes import LOOPBACK
from shardyard.launch.ray.quirks import nodes_at


def main() -> None:
    """Run a `ray` command line with loopback as the address of this host.

    Ray has a switch for this (`nodes.LOOPBACK_ENVIRONMENT`), intended for systems on which it supports a single node.
    Further nodes need it off in this process, and on in all processes that they start.
    """
    nodes_at(LOOPBACK)
    scripts.main()


if __name__ == "__main__":
    main()
