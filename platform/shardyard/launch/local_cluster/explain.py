"""Explanations why a node did not start, from the output of `ray start`. Pure."""

from __future__ import annotations

import re

from shardyard.launch.local_cluster.nodes import ClusterRecord

SHOWN_LINES = 12
_VERSIONS = re.compile(r"Ray: (?P<ray>\S+)\s+Python: (?P<python>\S+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TOKEN_WORDS = ("InvalidAuthToken", "AuthenticationError", "UNAUTHENTICATED", "Unauthenticated", "authentication token")


def explain_log(log: str, what: str, record: ClusterRecord) -> str:
    """The error message for a node that ended.

    Args:
        log: the output of its `ray start`.
        what: what happened, as the beginning of a sentence.
    """
    text = _COLOUR.sub("", log)
    if "ersion mismatch" in text:
        return _versions(text, record)
    if any(word in text for word in _TOKEN_WORDS):
        return (
            f"the cluster at {record.gcs} refuses the token in {record.token_path}. Copy the file that `shardyard "
            "cluster token` prints on the head to the same path here, readable by you only, and try again."
        )
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    shown = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:]) or "  nothing"
    return f"{what}; everything that was started has been stopped again. Last output of `ray start`:\n{shown}"


def _versions(text: str, record: ClusterRecord) -> str:
    """A text about the two versions: Ray prints those of the cluster first, then those of this host."""
    found = _VERSIONS.search(text)
    there = f"Ray {found['ray']} and Python {found['python']}" if found else "another version of Ray or Python"
    return (
        f"the cluster at {record.gcs} runs {there}, this host has Ray {record.ray} and Python {record.python}. All "
        "hosts of a cluster need the same versions; install the head's versions here."
    )
