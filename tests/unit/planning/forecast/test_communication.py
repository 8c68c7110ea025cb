"""What ranks exchange in a step, against volumes counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardyard.planning.architecture import Architecture, LayerShape
from shardyard.planning.forecast.communication import DataTraffic, data_transfers, layer_transfers
from shardyard.planning.forecast.compute import Kernels, Work
from shardyard.planning.forecast.hardware import Hardware, hardware_of

EIGHT = hardware_of("h100", 8)
WEIGHTS = 1e9
TRAFFIC = DataTraffic(
    stage=3, weights=WEIGHTS, expert_weights=0.0, trained=1.0, gradient_bytes=4, weight_bytes=2,
    bucket_bytes=100_000_000, layers=24, size=8, inner=1, expert=1, accumulation=4,
)  # fmt: skip
PART = 7 / 8
MODEL = Architecture(
    family="mixtral", parameters=10**9, matmul_parameters=10**9, largest_block_parameters=0, layers=10,
    hidden_size=1024, heads=16, vocabulary=32000, positions=None,
    layer=LayerShape(key_value_width=256, mlp_width=4096, experts=8, experts_per_token=2),
)  # fmt: skip


def sent(traffic: DataTraffic, hardware: Hardware = EIGHT) -> dict[tuple[str, str], float]:
    """Bytes by what is sent and when."""
    return {(one.what, one.when): one.sent_bytes for one in data_transfers(traffic, hardware)}


def test_stage_3_gathers_twice_and_reduces_once_in_each_micro_batch() -> None:
    assert sent(TRAFFIC) == pytest.approx(
        {
            ("all-gather of weights", "forward"): 4 * 2 * WEIGHTS * PART,
            ("all-gather of weights", "backward"): 4 * 2 * WEIGHTS * PART,
            ("reduce-scatter of gradients", "backward"): 4 * 4 * WEIGHTS * PART,
        }
    )


def test_a_second_copy_within_a_node_keeps_the_backward_gather_there() -> None:
    two_nodes = hardware_of("h100", 16, per_node=8, network="400gx8")
    found = {
        second: {
            one.when: one
            for one in data_transfers(replace(TRAFFIC, size=16, second=second), two_nodes)
            if one.what == "all-gather of weights"
        }
        for second in (1, 8)
    }
    assert found[8]["forward"] == found[1]["forward"]
    assert found[8]["backward"].sent_bytes == pytest.approx(4 * 2 * WEIGHTS * 7 / 8)
    assert found[8]["backward"].seconds < found[1]["backward"].seconds


def test_stage_2_all_reduces_in_each_micro_batch_and_stage_1_once_a_step() -> None:
    gathered = {("all-gather of weights", "after"): 2 * WEIGHTS * PART}
    assert sent(replace(TRAFFIC, stage=2)) == pytest.approx(
        {("all-reduce of gradients", "backward"): 4 * 2 * 4 * WEIGHTS * PART} | gathered
    )
    assert sent(replace(TRAFFIC, stage=1)) == pytest.approx(
        {("all-reduce of gradients", "last backward"): 2 * 4 * WEIGHTS * PART} | gathered
    )
    late = sent(replace(TRAFFIC, stage=1, beside=False))
    assert set(late) == {("all-reduce of gradients", "after"), ("all-gather of weights", "after")}
    assert sent(replace(TRAFFIC, stage=0)) == pytest.approx(
        {("all-reduce of gradients", "after"): 2 * 4 * WEIGHTS * PART}
    )


def test_gradients_in_16_bits_halve_their_traffic_and_adapters_leave_almost_none() -> None:
    half = sent(replace(TRAFFIC, gradient_bytes=2))[("reduce-scatter of gradients", "backward")]
    assert half == pytest.approx(4 * 2 * WEIGHTS * PART)
    assert sent(replace(TRAFFIC, stage=2, trained=0.01))[("all-gather of weights", "after")] == pytest.approx(
        0.01 * 2 * WEIGHTS * PART
    )
    assert not list(data_transfers(replace(TRAFFIC, stage=2, trained=0.0), EIGHT))


def test_one_rank_exchanges_nothing() -> None:
    assert not list(data_transfers(replace(TRAFFIC, size=1), EIGHT))
    assert not list(layer_transfers(Work(MODEL, 1, 1024), EIGHT, 1))


def test_experts_are_reduced_among_the_ranks_that_hold_the_same() -> None:
    found = {one.what: one for one in data_transfers(replace(TRAFFIC, expert_weights=1e8, expert=4), EIGHT)}
    assert found["all-gather of weights of experts"].sent_bytes == pytest.approx(4 * 2 * 1e8 * 1 / 2)
    alone = data_transfers(replace(TRAFFIC, expert_weights=1e8, expert=8), EIGHT)
    assert all("experts" not in one.what for one in alone)


def test_seconds_are_bytes_over_the_bus_and_a_start_for_each_bucket() -> None:
    (reduced, _) = data_transfers(replace(TRAFFIC, stage=1), EIGHT)
    buckets = 4 * WEIGHTS / 100_000_000
    assert reduced.seconds == pytest.approx(2 * 4 * WEIGHTS * PART / (0.8 * 450e9) + buckets * 20e-6)


DENSE = replace(MODEL, layer=LayerShape(key_value_width=256, mlp_width=4096))


def test_tensor_parallel_ranks_all_reduce_activations_four_times_a_layer() -> None:
    work = Work(DENSE, rows=2, length=1024, tensor=4)
    (found,) = layer_transfers(work, EIGHT, 3)
    activations = 2 * 1024 * 1024 * 2
    assert (found.axis, found.when, found.per_step) == ("tensor", "within", 3 * 10 * 4)
    assert found.sent_bytes == pytest.approx(3 * 10 * 4 * 2 * activations * 3 / 4)
    (again,) = layer_transfers(replace(work, recomputed=(1.0, 1.0, 1.0)), EIGHT, 3)
    assert again.sent_bytes == pytest.approx(1.5 * found.sent_bytes)
    (hidden,) = layer_transfers(work, EIGHT, 3, overlap=0.5)
    assert hidden.seconds == pytest.approx(found.seconds / 2)


def test_autotp_sums_a_gradient_for_each_matrix_that_reads_an_input() -> None:
    """DeepSpeed's ColumnParallel, which each such layer calls on its own: Llama has five of them."""
    llama = replace(DENSE, layer=LayerShape(key_value_width=256, mlp_width=4096, gated=True, inputs=(3, 2)))
    work = Work(llama, rows=2, length=1024, tensor=4)
    assert layer_transfers(work, EIGHT, 1)[0].per_step == 10 * (2 + 5)
    joined = replace(work, kernels=Kernels(joined_gradients=True))
    assert layer_transfers(joined, EIGHT, 1)[0].per_step == 10 * (2 + 2)
    experts = replace(llama, layer=replace(MODEL.layer or LayerShape(1, 1), inputs=(3, 2)))
    assert layer_transfers(replace(work, architecture=experts), EIGHT, 1)[0].per_step == 10 * (1 + 3)


def test_sequence_parallel_ranks_exchange_queries_keys_values_and_the_result() -> None:
    (found,) = layer_transfers(Work(MODEL, rows=2, length=1024, sequence=4), EIGHT, 1)
    numbers = 2 * 1024 / 4 * (2 * 1024 + 2 * 256)
    assert found.axis == "sequence"
    assert found.sent_bytes == pytest.approx(2 * 10 * numbers * 2 * 3 / 4)


def test_expert_parallel_ranks_send_each_token_to_its_experts_and_back() -> None:
    (found,) = layer_transfers(Work(MODEL, rows=2, length=1024, expert=4), EIGHT, 1)
    assert found.axis == "expert"
    assert found.sent_bytes == pytest.approx(4 * 10 * 2 * 1024 * 1024 * 2 * 2 * 3 / 4)
