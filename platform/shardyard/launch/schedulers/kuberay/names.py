"""Valid Kubernetes names and labels from any text, readable and unique."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

# KubeRay derives names of clusters, services and pods from a RayJob's, and refuses longer ones.
MAX_JOB_NAME = 47
MAX_CLUSTER_NAME = 50
MAX_LABEL = 63
# The prefix of our labels and annotations.
PREFIX = "shardyard"

_HASH_LENGTH = 8
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


def dns_name(text: str, limit: int = MAX_JOB_NAME) -> str:
    """A DNS label (RFC 1123) of at most `limit` characters that begins with a letter, as required for services (RFC
    1035).

    `GPT-2 (1.5B)` → `gpt-2-1-5b`. A truncated name, or one without ASCII letters or digits, ends in a hash of the text.
    """
    assert limit > 2 * _HASH_LENGTH, limit
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if not slug:
        return f"job-{_hash(text)}"
    if not slug[0].isalpha():
        slug = f"job-{slug}"
    if len(slug) <= limit:
        return slug
    return f"{slug[: limit - _HASH_LENGTH - 1].rstrip('-')}-{_hash(text)}"


def label_value(text: str) -> str:
    """A label value: at most 63 letters, digits, `.`, `_` and `-`, with a letter or digit at both ends."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    value = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")
    if not value and text:
        return _hash(text)
    if len(value) <= MAX_LABEL:
        return value
    return f"{value[: MAX_LABEL - _HASH_LENGTH - 1].rstrip('._-')}-{_hash(text)}"


def tag_labels(tags: Iterable[str]) -> dict[str, str]:
    """`shardyard/tag-…: "true"` for each tag, so that `kubectl get rayjobs -l shardyard/tag-ablation` finds them."""
    # The part of a label key after the slash is also limited to 63 characters.
    return {f"{PREFIX}/tag-{dns_name(tag, MAX_LABEL - len('tag-'))}": "true" for tag in tags}


def is_label_value(text: str) -> bool:
    """Whether `text` is a valid label value."""
    return len(text) <= MAX_LABEL and _LABEL_VALUE.fullmatch(text) is not None


def is_label_key(text: str) -> bool:
    """Whether `text` is a valid label key, with or without a prefix such as `example.com/`."""
    prefix, slash, name = text.rpartition("/")
    return bool(name) and is_label_value(name) and (not slash or is_subdomain(prefix))


def is_resource_name(text: str) -> bool:
    """Whether `text` is a valid extended resource: a key with a prefix, such as `rdma/hca`."""
    return "/" in text and is_label_key(text)


def is_subdomain(text: str) -> bool:
    """Whether `text` is a valid name of most objects, such as secrets, claims and service accounts (RFC 1123
    subdomain)."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_namespace(text: str) -> bool:
    """Whether `text` is a valid namespace (RFC 1123 label)."""
    return len(text) <= MAX_LABEL and "." not in text and is_subdomain(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]
