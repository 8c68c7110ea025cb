"""A local Ray for one run, which listens only on loopback.

By default, Ray binds most of its servers to all interfaces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from shardyard.launch.local_cluster.nodes import LOOPBACK, LOOPBACK_ENVIRONMENT
from shardyard.launch.local_cluster.plan import NO_METRICS
from shardyard.launch.ray.quirks import fewest_daemons, one_node

# If its head dies, a Ray for one run does not come back: the driver and the ranks end soon instead of after a minute.
HEAD_SECONDS = 5
INIT_OPTIONS = {
    "_node_ip_address": LOOPBACK,
    "include_dashboard": False,
    "_system_config": {"gcs_rpc_server_reconnect_timeout_s": HEAD_SECONDS},
}


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray started inside listens only on 127.0.0.1, requires a token, exports no metrics, and has few daemons.

    Ray's daemons inherit the environment when they start; it is restored afterwards.
    """
    with _environment({**LOOPBACK_ENVIRONMENT, **NO_METRICS}), one_node(), fewest_daemons():
        yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
