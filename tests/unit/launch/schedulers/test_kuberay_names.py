"""Names and labels for Kubernetes, from any text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.launch.schedulers.kuberay.names import (
    dns_name,
    is_label_key,
    is_label_value,
    is_namespace,
    is_resource_name,
    is_subdomain,
    label_value,
    tag_labels,
)

# RFC 1035, as services of Kubernetes want it.
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(20, 63))
def test_any_text_becomes_a_name(text: str, limit: int) -> None:
    name = dns_name(text, limit)
    assert DNS_LABEL.fullmatch(name)
    assert len(name) <= limit


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_becomes_the_value_and_the_key_of_a_label(text: str) -> None:
    value = label_value(text)
    assert LABEL_VALUE.fullmatch(value)
    assert len(value) <= 63
    assert is_label_value(value)
    (key,) = tag_labels([text])
    assert is_label_key(key)
    assert len(key.partition("/")[2]) <= 63


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt-quickstart", "gpt-quickstart"),
        ("GPT-2 (1.5B)", "gpt-2-1-5b"),
        ("Llama_2.7B", "llama-2-7b"),
        ("--Crème brûlée--", "creme-brulee"),
        ("7b", "job-7b"),
    ],
)
def test_names_stay_readable(text: str, expected: str) -> None:
    assert dns_name(text) == expected


def test_what_is_cut_stays_different() -> None:
    first, second = dns_name("a" * 60 + "-1"), dns_name("a" * 60 + "-2")
    assert first != second
    assert len(first) == len(second) == 47
    assert dns_name("模型") != dns_name("数据")
    assert label_value("x" * 70 + "1") != label_value("x" * 70 + "2")


def test_names_that_kubernetes_takes() -> None:
    assert is_subdomain("my-claim.v2")
    assert not any(map(is_subdomain, ("", "A", "a_b", "-a", "a.", "a" * 254)))
    assert is_namespace("team-1")
    assert not is_namespace("team.1")
    assert is_resource_name("vpc.amazonaws.com/efa")
    assert not any(map(is_resource_name, ("hca", "/hca", "A B/c", "rdma/")))
    assert not is_label_value("-a")
    assert not is_label_key("x" * 64)
