"""Bytes of tensors that are alive, and their peak."""

from __future__ import annotations

import torch

from shardyard.engine.memory.allocations import Allocations


def test_a_storage_counts_once_until_it_is_freed() -> None:
    with Allocations() as found:
        one = torch.ones(256)
        view = one.view(16, 16)[2:]
        assert found.live == 1024
        two = one + 1
        assert found.live == found.peak == 2048
        del one
        assert found.live == 2048, "the view keeps it"
        del view, two
        assert found.live == 0
        assert found.peak == 2048
        found.restart()
        assert found.peak == 0


def test_a_backward_pass_is_seen() -> None:
    weight = torch.ones(64, 64, requires_grad=True)
    with Allocations() as found:
        (weight * weight).sum().backward()
        assert weight.grad is not None
        assert found.live == weight.grad.nbytes
        assert found.peak >= 2 * weight.nbytes, "the product's gradient beside a term of the weight's"


def test_tensors_of_other_devices_do_not_count() -> None:
    with Allocations("cuda") as found:
        torch.ones(256)
        assert found.peak == 0


def test_the_peak_is_looked_at_while_it_lasts() -> None:
    seen = []
    with Allocations() as found:
        found.at_peak(2000, lambda: seen.append(found.live))
        one = torch.ones(256)
        two = torch.ones(256)
        del one
        three = torch.ones(300)
        del two, three
    assert seen == [2048, 2224]


def test_bytes_of_chosen_tensors() -> None:
    with Allocations() as found:
        one, two = torch.ones(256), torch.ones(8)
        seen = set[int]()
        assert found.bytes_of([one, one[:2]], seen) == 1024
        assert found.bytes_of([one], seen) == 0
        rest = found.keys_outside(seen)
        assert found.bytes_in(rest) == two.nbytes
