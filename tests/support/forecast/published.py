"""Published speeds of training, and what a forecast says of the same run; writes the table of docs/large/forecast.md.

`python tests/support/forecast/published.py` writes it anew. The figures are facts from:

- llm-foundry: the table of mosaicml/llm-foundry, scripts/train/benchmarking/README.md, commit 8c8dd48, bf16, FULL_SHARD
- torchtitan: benchmarks/llama3_h100_202412_torchtitan.md and asyncTP_llama3_h100_2025-06_torchtitan.md of
  pytorch/torchtitan, commit b5bcd76
- Megatron 2021: Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters, table 1
- Megatron 2022: Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, table 5
- AutoModel: docs/performance-summary.mdx of NVIDIA-NeMo/Automodel, commit 36044ad, LoRA of rank 16, settings from its
  examples/llm_benchmark
- Megatron 2024: the table of models in the README of NVIDIA/Megatron-LM, commit d98e8a6
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardyard.planning.architecture import Architecture, LayerShape, flops_per_token
from shardyard.planning.forecast.communication import DataTraffic, Transfer, data_transfers, layer_transfers
from shardyard.planning.forecast.compute import Kernels, Work, compute
from shardyard.planning.forecast.hardware import Hardware, hardware_of
from shardyard.planning.forecast.step import step_time, update_seconds

PAGE = Path(__file__).resolve().parents[3] / "docs" / "large" / "forecast.md"
START, END = "<!-- published: start -->", "<!-- published: end -->"
NONE, SELECTIVE, FULL = (0.0, 0.0, 0.0), (0.5, 0.0, 1.0), (1.0, 1.0, 1.0)
ATTENTION_ONLY = (0.0, 1.0, 0.0)
# torchtitan's H100 have HBM2e at 2.4 TB/s and a power limit of 500 W.
TITAN = "h100-80gb:memory=96GiB,bandwidth=2.4e12,watts=500"
# Shares of the tensor-parallel exchange that Megatron, and torchtitan where it is asynchronous, run beside products.
# The latter is what torchtitan's own pairs of rows with and without it say.
MEGATRON_OVERLAP, ASYNC_OVERLAP = 0.8, 0.4


@dataclass(frozen=True)
class Software:
    """What was measured.

    sharding: `zero 3`, `zero 0`, or `megatron`, whose optimizer reduce-scatters and gathers beside the passes.
    """

    kernels: Kernels
    sharding: str
    gradient_bytes: int = 4


@dataclass(frozen=True)
class Point:
    """One published run. published: tokens a second and GPU. fitted: whether the constants were fitted to such runs."""

    source: str
    model: str
    gpu: str
    gpus: int
    length: int
    rows: int
    accumulation: int
    recomputed: tuple[float, float, float]
    published: float
    tensor: int = 1
    overlap: float = 0.0
    how: str = ""
    trained: float = 1.0

    @property
    def fitted(self) -> bool:
        return self.source == "llm-foundry" and self.gpus == 8

    @property
    def key(self) -> str:
        return f"{self.source}-{self.model}-{self.gpus}-{self.gpu[:4]}-{self.length}{self.how}"


def gpt(layers: int, hidden: int, heads: int, vocabulary: int, *, tied: bool = True) -> Architecture:
    """A GPT with layer norms, as in GPT-3, MPT and Megatron."""
    block, table = 12 * hidden**2, vocabulary * hidden
    return Architecture(
        family="gpt2", parameters=layers * block + table * (1 if tied else 2), matmul_parameters=layers * block + table,
        largest_block_parameters=block, layers=layers, hidden_size=hidden, heads=heads, vocabulary=vocabulary,
        positions=None, layer=LayerShape(hidden, 4 * hidden),
    )  # fmt: skip


def llama(
    layers: int, hidden: int, heads: int, inner: int, *, key_value: int = 1024, vocabulary: int = 128256
) -> Architecture:
    """A Llama 3.1 with 8 key and value heads of 128, or a Qwen 2.5."""
    block, table = 2 * hidden**2 + 2 * hidden * key_value + 3 * hidden * inner, vocabulary * hidden
    return Architecture(
        family="llama", parameters=layers * block + 2 * table, matmul_parameters=layers * block + table,
        largest_block_parameters=block, layers=layers, hidden_size=hidden, heads=heads, vocabulary=vocabulary,
        positions=None, layer=LayerShape(key_value, inner, gated=True, rms_norm=True, rotary=True),
    )  # fmt: skip


_MPT = {"125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 12), "1b": (24, 2048, 16),
        "3b": (32, 2560, 20), "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56),
        "70b": (80, 8192, 64)}  # fmt: skip
MODELS = {
    **{f"mpt {name}": gpt(*shape, 50368) for name, shape in _MPT.items()},
    "llama 8b": llama(32, 4096, 32, 14336),
    "llama 70b": llama(80, 8192, 64, 28672),
    "qwen 7b": llama(28, 3584, 28, 18944, key_value=512, vocabulary=152064),
    "qwen 32b": llama(64, 5120, 40, 27648, vocabulary=152064),
    "gpt 1.7b (2021)": gpt(24, 2304, 24, 51200),
    "gpt 3.6b (2021)": gpt(30, 3072, 32, 51200),
    "gpt 7.5b (2021)": gpt(36, 4096, 32, 51200),
    "gpt 18.4b (2021)": gpt(40, 6144, 48, 51200),
    "gpt 22b": gpt(48, 6144, 64, 51200),
    "gpt 1.7b": gpt(24, 2048, 16, 131072, tied=False),
    "gpt 7.1b": gpt(30, 4096, 32, 131072, tied=False),
    "gpt 16b": gpt(32, 6144, 48, 131072, tied=False),
    "gpt 32b": gpt(48, 7168, 56, 131072, tied=False),
}
NETWORKS = {"a100": "200gx8", "h100": "400gx8"}


def _foundry(text: str) -> list[Point]:
    """Lines of `model gpu gpus length rows accumulation recomputed tokens`."""
    points = []
    for line in text.strip().splitlines():
        model, gpu, gpus, length, rows, accumulation, again, tokens = line.split()
        recomputed = FULL if again == "full" else NONE
        sizes = (int(gpus), int(length), int(rows), int(accumulation))
        points.append(Point("llm-foundry", f"mpt {model}", gpu, *sizes, recomputed, float(tokens)))
    return points


def _megatron_2021(model: str, gpus: int, rows: int, tensor: int, tera: float) -> Point:
    """The table has FLOP/s of the hardware, with those of recomputation, by its equation 3."""
    size, length = MODELS[model], 2048
    layers, hidden, vocabulary = size.layers, size.hidden_size, size.vocabulary
    flops = 96 * layers * hidden**2 * (1 + length / (6 * hidden) + vocabulary / (16 * layers * hidden))
    accumulation = rows * tensor // gpus // 4
    return Point("Megatron 2021", model, "a100-80gb", gpus, length, 4, accumulation, FULL, tera * 1e12 / flops,
                 tensor=tensor)  # fmt: skip


def _megatron_2024(model: str, gpus: int, tensor: int, tera: float) -> Point:
    """The table has FLOP/s of the model; four rows in a step for each data-parallel rank."""
    tokens = tera * 1e12 / flops_per_token(MODELS[model], 4096)
    return Point(
        "Megatron 2024", model, "h100-80gb", gpus, 4096, 1, 4, NONE, tokens, tensor=tensor, overlap=MEGATRON_OVERLAP
    )


def _lora(
    model: str, gpus: int, tensor: int, accumulation: int, again: tuple[float, float, float], tokens: float, how: str
) -> Point:
    sizes = (gpus, 4096, 2, accumulation)
    return Point("AutoModel", model, "h100-80gb", *sizes, again, tokens, tensor=tensor, how=f"LoRA, {how}",
                 trained=0.005)  # fmt: skip


POINTS = [
    *_foundry("""
        760m h100-80gb 8 1024 48 2 none 78581
        1b h100-80gb 8 2048 14 1 none 45455
        3b h100-80gb 8 1024 20 6 none 27046
        3b h100-80gb 8 8192 3 6 none 16578
        7b h100-80gb 8 2048 6 1 none 10643
        7b h100-80gb 8 8192 8 2 full 6935
        7b h100-80gb 8 65536 1 2 full 1956
        13b h100-80gb 8 2048 2 1 none 4792
        13b h100-80gb 8 16384 3 3 full 2985
        30b h100-80gb 8 2048 3 21 full 2002
        125m a100-80gb 8 2048 32 2 none 141737
        350m a100-80gb 8 2048 32 2 none 58782
        760m a100-80gb 8 2048 24 2 none 32434
        1b a100-80gb 8 2048 14 4 none 20513
        3b a100-80gb 8 2048 10 2 none 10811
        7b a100-80gb 8 2048 6 2 none 4641
        7b a100-80gb 8 32768 2 2 full 1672
        13b a100-80gb 8 2048 2 3 none 2262
        30b a100-80gb 8 2048 3 21 full 916
        1b h100-80gb 64 2048 20 1 none 44402
        3b h100-80gb 16 2048 10 3 none 24142
        7b h100-80gb 128 2048 6 1 none 10475
        7b h100-80gb 512 2048 6 1 none 9670
        13b h100-80gb 64 2048 2 1 none 4800
        13b h100-80gb 512 2048 16 1 full 4952
        30b h100-80gb 32 2048 14 3 full 2308
        30b h100-80gb 512 2048 8 1 full 2115
        70b h100-80gb 32 2048 2 16 full 882
        70b h100-80gb 128 2048 8 1 full 1058
        70b h100-80gb 512 2048 8 1 full 1007
        70b a100-80gb 32 2048 2 16 full 373
        70b a100-80gb 64 2048 8 4 full 410
        760m a100-40gb 128 2048 12 1 none 28940
        1b a100-40gb 64 2048 10 1 none 19001
        3b a100-40gb 128 2048 6 1 none 9538
        70b a100-40gb 128 2048 4 1 full 376
    """),
    Point("torchtitan", "llama 8b", TITAN, 8, 8192, 2, 1, SELECTIVE, 5762, how="eager"),
    Point("torchtitan", "llama 8b", TITAN, 8, 8192, 2, 1, SELECTIVE, 6667, how="compiled"),
    Point("torchtitan", "llama 8b", TITAN, 128, 8192, 2, 1, SELECTIVE, 5605, how="eager"),
    Point("torchtitan", "llama 8b", TITAN, 128, 8192, 2, 1, SELECTIVE, 6514, how="compiled"),
    Point("torchtitan", "llama 8b", TITAN, 64, 8192, 12, 1, SELECTIVE, 4378, tensor=8, how="compiled"),
    Point("torchtitan", "llama 8b", TITAN, 64, 8192, 12, 1, SELECTIVE, 4809.4, 8, ASYNC_OVERLAP, how="compiled, async"),
    Point("torchtitan", "llama 70b", TITAN, 256, 8192, 16, 1, FULL, 597.3, tensor=8, how="compiled"),
    Point("torchtitan", "llama 70b", TITAN, 256, 8192, 16, 1, FULL, 652.4, 8, ASYNC_OVERLAP, how="compiled, async"),
    _megatron_2021("gpt 1.7b (2021)", 32, 512, 1, 137),
    _megatron_2021("gpt 3.6b (2021)", 64, 512, 2, 138),
    _megatron_2021("gpt 7.5b (2021)", 128, 512, 4, 142),
    _megatron_2021("gpt 18.4b (2021)", 256, 1024, 8, 135),
    _lora("llama 8b", 1, 1, 16, NONE, 12472.87, "eager"),
    _lora("qwen 7b", 1, 1, 16, NONE, 14110.05, "eager"),
    _lora("llama 70b", 8, 2, 4, FULL, 1091.85, "compiled"),
    _lora("qwen 32b", 8, 2, 4, FULL, 2250.31, "compiled"),
    _lora("llama 70b", 16, 2, 2, FULL, 984.85, "compiled"),
    _lora("qwen 32b", 16, 2, 2, FULL, 2072.89, "compiled"),
    # 1.42 and 1.10 s for four rows.
    Point("Megatron 2022", "gpt 22b", "a100-80gb", 8, 2048, 4, 1, FULL, 4 * 2048 / 1.42 / 8, tensor=8),
    Point("Megatron 2022", "gpt 22b", "a100-80gb", 8, 2048, 4, 1, ATTENTION_ONLY, 4 * 2048 / 1.10 / 8, tensor=8),
    _megatron_2024("gpt 1.7b", 48, 1, 408.8),
    _megatron_2024("gpt 7.1b", 96, 2, 465.9),
    _megatron_2024("gpt 16b", 192, 4, 489.1),
    _megatron_2024("gpt 32b", 384, 8, 459.6),
]


def software_of(point: Point) -> Software:
    """The kernels and the sharding of a source."""
    if point.source == "llm-foundry":
        # Its tables with 40 GB reduce gradients in bf16 (PURE), the others in fp32.
        return Software(Kernels("flash1"), "zero 3", 2 if point.gpu == "a100-40gb" else 4)
    if point.source == "torchtitan":
        fused = point.how.startswith("compiled")
        return Software(
            Kernels("flash2", fused=fused, split_logits=True, joined_gradients=True, split_norms=True), "zero 3"
        )
    if point.source == "AutoModel":
        return Software(
            Kernels(
                "flash2",
                fused="compiled" in point.how,
                split_logits=True,
                joined_gradients=True,
                split_norms=point.model == "llama 70b",
            ),
            "zero 3",
        )
    if point.source == "Megatron 2021":
        return Software(Kernels("eager", fused=True, split_logits=True, joined_gradients=True), "zero 0", 2)
    if point.source == "Megatron 2022":
        sequence = point.recomputed == ATTENTION_ONLY
        return Software(
            Kernels("eager", fused=True, split_logits=True, joined_gradients=True, split_norms=sequence), "zero 0", 2
        )
    return Software(
        Kernels("flash3", fused=True, split_logits=True, joined_gradients=True, split_norms=True), "megatron", 2
    )


def predicted(point: Point) -> float:
    """Tokens a second and GPU."""
    hardware = hardware_of(point.gpu, point.gpus, network=NETWORKS[point.gpu[:4]])
    model, software = MODELS[point.model], software_of(point)
    stage = int(software.sharding.removeprefix("zero ")) if software.sharding != "megatron" else 1
    work = Work(
        model,
        point.rows,
        point.length,
        tensor=point.tensor,
        recomputed=point.recomputed,
        trained=point.trained,
        stage_3=stage == 3,
        kernels=software.kernels,
    )
    data, weights = point.gpus // point.tensor, model.parameters / point.tensor
    transfers = layer_transfers(work, hardware, point.accumulation, overlap=point.overlap)
    if software.sharding == "megatron":
        transfers += _beside_the_passes(model, weights, data, point.tensor, hardware)
    else:
        traffic = DataTraffic(
            stage=stage,
            weights=weights,
            expert_weights=0.0,
            trained=point.trained,
            gradient_bytes=software.gradient_bytes,
            weight_bytes=2,
            bucket_bytes=10**9,
            layers=model.layers,
            size=data,
            inner=point.tensor,
            expert=1,
            accumulation=point.accumulation,
        )
        transfers += data_transfers(traffic, hardware)
    kept = point.trained * weights / (data if stage == 3 else 1)
    update = update_seconds(
        hardware.accelerator,
        point.trained * weights / (data if stage else 1),
        offloaded=False,
        per_node=8,
        weight_bytes=2,
        accumulated=point.accumulation * kept if point.accumulation > 1 else 0.0,
    )
    computed = compute(work, hardware.accelerator)
    step = step_time(computed, transfers, point.accumulation, update)
    return point.rows * point.length * point.accumulation * data / step.seconds / point.gpus


def _beside_the_passes(
    model: Architecture, weights: float, size: int, inner: int, hardware: Hardware
) -> list[Transfer]:
    sent = 2 * weights * (size - 1) / size
    seconds = sent / hardware.bus(inner, size) + model.layers * hardware.latency(inner, size)
    return [
        Transfer("data", "reduce-scatter of gradients", "last backward", sent, seconds, 1),
        Transfer("data", "all-gather of weights", "forward", sent, seconds, 1),
    ]


def table() -> str:
    """The table of the page."""
    lines = [
        "| source | model | GPUs | row | rows × micro-batches | computed again | published | forecast | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in POINTS:
        found = predicted(one)
        gpu = "h100, 500 W" if one.gpu == TITAN else one.gpu
        ranks = f"{one.gpus} {gpu}" + (f", tensor {one.tensor}" if one.tensor > 1 else "")
        again = {NONE: "nothing", SELECTIVE: "selective", ATTENTION_ONLY: "attention", FULL: "all"}[one.recomputed]
        source = f"{one.source}{' (fitted)' if one.fitted else ''}{f', {one.how}' if one.how else ''}"
        cells = [source, one.model.partition(" (")[0], ranks, str(one.length), f"{one.rows} × {one.accumulation}"]
        cells += [again, f"{one.published:,.0f}", f"{found:,.0f}", f"{found / one.published - 1:+.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
