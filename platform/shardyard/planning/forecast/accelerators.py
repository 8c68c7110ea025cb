"""The accelerators that a plan can name: memory, peaks, bandwidth, link and power of each, with its source.

Also the peaks that `perf/mfu` divides by. What is not in the table is described by hand (`described`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from shardyard.errors import UsageError
from shardyard.planning.forecast.links import LINKS, Link
from shardyard.suggest import nearest
from shardyard.units import parse_bytes

_MIB = 1024**2
_TERA, _GIGA = 1e12, 1e9
# Share of the peak that large matrix products reach where nobody has published a measurement.
ASSUMED_MATMUL_SHARE = 0.75


@dataclass(frozen=True)
class Accelerator:
    """One device as PyTorch shows it. Bytes, FLOP/s and bytes/s are of one device, in one direction.

    pattern: the whole name of the device in PyTorch, without the vendor; laptop chips, MIG slices and export variants
        are slower and must not match.
    memory_bytes: as the driver reports it.
    peaks: dense FLOP/s by precision (fp32 is without TF32, fp16 with fp32 accumulation), where it has units.
    matmul_share: share of the 16-bit peak that the largest matrix products reach; `measured` if published.
    watts: the thermal design power, or a lower limit set by hand.
    """

    name: str
    title: str
    generation: str
    pattern: str
    memory_bytes: int
    peaks: Mapping[str, float]
    bandwidth: float
    link: Link
    watts: float
    source: str
    aliases: tuple[str, ...] = ()
    matmul_share: float = ASSUMED_MATMUL_SHARE
    measured: bool = False
    full_watts: float | None = None

    @property
    def clock(self) -> float:
        """Share of the usual clock under a power limit below the design power.

        Power grows with the square of the clock or faster, so that the clock falls with its root.
        """
        return 1.0 if self.full_watts is None else min(1.0, (self.watts / self.full_watts) ** 0.5)


def _peaks(
    fp32: float, half: float, tf32: float | None = None, fp8: float | None = None, bf16: float | None = None
) -> dict[str, float]:
    """TFLOP/s by precision; `half` is for fp16, and for bf16 unless that is given as 0 (no bf16 units)."""
    values = {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": half if bf16 is None else bf16, "fp8": fp8}
    return {precision: value * _TERA for precision, value in values.items() if value}


def _of(
    names: str,
    title: str,
    generation: str,
    pattern: str,
    mebibytes: int,
    peaks: dict[str, float],
    gigabytes_per_second: float,
    link: str,
    watts: float,
    source: str,
    matmul: float | None = None,
) -> Accelerator:
    name, *aliases = names.split()
    return Accelerator(
        name=name,
        title=title,
        generation=generation,
        pattern=pattern,
        memory_bytes=mebibytes * _MIB,
        peaks=peaks,
        bandwidth=gigabytes_per_second * _GIGA,
        link=LINKS[link],
        watts=watts,
        source=source,
        aliases=tuple(aliases),
        matmul_share=ASSUMED_MATMUL_SHARE if matmul is None else matmul,
        measured=matmul is not None,
    )


_H100, _A100 = _peaks(67, 989.4, tf32=494.7, fp8=1979), _peaks(19.5, 312, tf32=156)
# Peaks, bandwidth and power: the vendor's data sheet, dense, without structured sparsity. Matrix products: the best of
# many shapes, from Bekman's Machine Learning Engineering Open Book, "Maximum Achievable Matmul FLOPS", 2026.
ACCELERATORS: tuple[Accelerator, ...] = (
    _of("gb200", "NVIDIA GB200", "blackwell", r"GB200", 189471, _peaks(80, 2500, 1250, 5000), 8000, "nvlink5", 1200,
        "NVIDIA GB200 NVL72 data sheet, per GPU", 0.729),
    _of("b200 b200-180gb b200-192gb", "NVIDIA B200", "blackwell", r"B200", 183359, _peaks(75, 2250, 1125, 4500), 8000,
        "nvlink5", 1000, "NVIDIA DGX B200 data sheet, per GPU", 0.776),
    _of("h200 h200-141gb h200-sxm", "NVIDIA H200 SXM", "hopper", r"H200|GH200( 144G.*)?", 143771, _H100, 4800,
        "nvlink4", 700, "NVIDIA H200 data sheet", 0.803),
    _of("h200-nvl", "NVIDIA H200 NVL", "hopper", r"H200 NVL", 143771, _peaks(60, 835.5, 417.5, 1671), 4800, "nvlink4",
        600, "NVIDIA H200 data sheet"),
    _of("gh200 gh200-96gb", "NVIDIA GH200 96 GB", "hopper", r"GH200( (?!144)\d+GB)", 97871, _H100, 4000, "nvlink4", 700,
        "NVIDIA GH200 data sheet", 0.838),
    _of("h100-80gb h100 h100-sxm h100-sxm5 h100-80gb-sxm", "NVIDIA H100 SXM 80 GB", "hopper",
        r"H100 \d+GB HBM3|H100 SXM\d?", 81559, _H100, 3350, "nvlink4", 700, "NVIDIA H100 data sheet", 0.803),
    _of("h100-nvl h100-94gb", "NVIDIA H100 NVL", "hopper", r"H100 NVL", 95830, _peaks(60, 835.5, 417.5, 1671), 3900,
        "nvlink4-bridge", 400, "NVIDIA H100 data sheet"),
    _of("h100-pcie h100-80gb-pcie", "NVIDIA H100 PCIe 80 GB", "hopper", r"H100 PCIe", 81559, _peaks(51, 756, 378, 1513),
        2000, "pcie5", 350, "NVIDIA H100 data sheet"),
    _of("a100-80gb a100 a100-sxm a100-80gb-sxm", "NVIDIA A100 SXM 80 GB", "ampere", r"A100[- ]SXM4-80GB|A100", 81920,
        _A100, 2039, "nvlink3", 400, "NVIDIA A100 data sheet", 0.869),
    _of("a100-40gb a100-40gb-sxm", "NVIDIA A100 SXM 40 GB", "ampere", r"A100[- ]SXM4([- ]\d+GB)?", 40960, _A100, 1555,
        "nvlink3", 400, "NVIDIA A100 data sheet", 0.869),
    _of("a100-80gb-pcie a100-pcie", "NVIDIA A100 PCIe 80 GB", "ampere",
        r"A100[- ]80GB PCIe|A100-PC(IE|Ie)-80GB|A100[- ]PC(IE|Ie)", 81920, _A100, 1935, "pcie4", 300,
        "NVIDIA A100 data sheet", 0.811),
    _of("a100-40gb-pcie", "NVIDIA A100 PCIe 40 GB", "ampere", r"A100[- ]PC(IE|Ie)-40GB|A100 40GB PCIe", 40960, _A100,
        1555, "pcie4", 250, "NVIDIA A100 data sheet", 0.811),
    _of("a30", "NVIDIA A30", "ampere", r"A30", 24576, _peaks(10.3, 165, 82), 933, "pcie4", 165,
        "NVIDIA A30 data sheet"),
    _of("a40", "NVIDIA A40", "ampere", r"A40", 46068, _peaks(37.4, 149.7, 74.8), 696, "pcie4", 300,
        "NVIDIA A40 data sheet"),
    _of("a10", "NVIDIA A10", "ampere", r"A10", 23028, _peaks(31.2, 125, 62.5), 600, "pcie4", 150,
        "NVIDIA A10 data sheet"),
    _of("a10g", "NVIDIA A10G", "ampere", r"A10G", 23028, _peaks(35, 70, 35), 600, "pcie4", 300,
        "NVIDIA A10G data sheet"),
    _of("l40s", "NVIDIA L40S", "ada", r"L40S", 46068, _peaks(91.6, 362, 183, 733), 864, "pcie4", 350,
        "NVIDIA L40S data sheet"),
    _of("l40", "NVIDIA L40", "ada", r"L40", 46068, _peaks(90.5, 181, 90.5, 362), 864, "pcie4", 300,
        "NVIDIA L40 data sheet"),
    _of("l4", "NVIDIA L4", "ada", r"L4", 23034, _peaks(30.3, 121, 60, 242), 300, "pcie4", 72, "NVIDIA L4 data sheet"),
    _of("rtx5090 rtx-5090 5090", "NVIDIA GeForce RTX 5090", "blackwell", r"GeForce RTX 5090", 32607,
        _peaks(104.8, 209.5, 104.8, 419), 1792, "pcie5", 575, "NVIDIA RTX Blackwell architecture paper"),
    _of("rtx4090 rtx-4090 4090", "NVIDIA GeForce RTX 4090", "ada", r"GeForce RTX 4090", 24564,
        _peaks(82.6, 165.2, 82.6, 330.3), 1008, "pcie4", 450, "NVIDIA Ada architecture paper"),
    _of("rtx3090 rtx-3090 3090", "NVIDIA GeForce RTX 3090", "ampere", r"GeForce RTX 3090", 24576,
        _peaks(35.6, 71, 35.6), 936, "pcie4", 350, "NVIDIA GA102 architecture paper"),
    _of("v100-32gb v100", "NVIDIA V100 SXM2 32 GB", "volta", r"V100-SXM[23]-32GB(-LS)?|V100-SXM3", 32510,
        _peaks(15.7, 125, bf16=0), 900, "nvlink2", 300, "NVIDIA V100 data sheet"),
    _of("v100-16gb", "NVIDIA V100 SXM2 16 GB", "volta", r"V100-SXM2(-16GB)?", 16160, _peaks(15.7, 125, bf16=0), 900,
        "nvlink2", 300, "NVIDIA V100 data sheet"),
    _of("v100-pcie v100-32gb-pcie", "NVIDIA V100 PCIe 32 GB", "volta", r"V100-PCIE-32GB", 32510,
        _peaks(14, 112, bf16=0), 900, "pcie3", 250, "NVIDIA V100 data sheet"),
    _of("v100-16gb-pcie", "NVIDIA V100 PCIe 16 GB", "volta", r"V100-PCIE(-16GB)?", 16160, _peaks(14, 112, bf16=0), 900,
        "pcie3", 250, "NVIDIA V100 data sheet"),
    _of("t4", "NVIDIA T4", "turing", r"T4", 15360, _peaks(8.1, 65, bf16=0), 320, "pcie3", 70, "NVIDIA T4 data sheet"),
    _of("mi325x", "AMD Instinct MI325X", "cdna3", r"Instinct MI325X", 262128, _peaks(163.4, 1307.4, 653.7, 2614.9),
        6000, "xgmi3", 1000, "AMD Instinct MI325X data sheet", 0.604),
    _of("mi300x", "AMD Instinct MI300X", "cdna3", r"Instinct MI300X", 196592, _peaks(163.4, 1307.4, 653.7, 2614.9),
        5300, "xgmi3", 750, "AMD Instinct MI300X data sheet", 0.514),
    # PyTorch shows each of the two dies of an MI250X as a device, so this is half of the data sheet's numbers.
    _of("mi250x mi250", "AMD Instinct MI250X, one of two dies", "cdna2", r"Instinct MI250X?( / MI250)?", 65520,
        _peaks(23.9, 191.5), 1638, "xgmi2", 280, "AMD Instinct MI250X data sheet, halved"),
    _of("mi210", "AMD Instinct MI210", "cdna2", r"Instinct MI210", 65520, _peaks(22.6, 181), 1638, "pcie4", 300,
        "AMD Instinct MI210 data sheet"),
)  # fmt: skip

_BY_NAME = {name: one for one in ACCELERATORS for name in (one.name, *one.aliases)}
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8")
_FIELDS = ("memory", "bandwidth", "link", "watts", *_PRECISIONS)
_EXAMPLE = "mine:memory=80GiB,bandwidth=3.35e12,bf16=989e12,link=450e9,watts=700"


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s specified by the vendor of a device, by its name in PyTorch.

    `precision` is fp32, tf32, bf16, fp16 or fp8. None for hardware that is not in the table (such as all CPUs), and for
    a precision without hardware units.
    """
    found = by_device(device_name)
    return None if found is None else found.peaks.get(precision)


def by_device(device_name: str) -> Accelerator | None:
    """The accelerator with this name in PyTorch; None if it is not in the table."""
    name = re.sub(r"^((NVIDIA|Tesla|AMD) )+", "", device_name.strip())
    return next((one for one in ACCELERATORS if re.fullmatch(one.pattern, name)), None)


def accelerator_of(text: str) -> Accelerator:
    """The accelerator that `--gpu` names: `h100-80gb`, one with changed numbers (`h100-80gb:watts=500`), or one that is
    described by hand (`mine:memory=80GiB,bandwidth=3.35e12,bf16=989e12,link=450e9,watts=700`).

    Raises:
        UsageError: it is not in the table and not described, or a number is missing or none.
    """
    name, _, numbers = text.partition(":")
    known = _BY_NAME.get(name.strip().lower().replace("_", "-").replace(" ", "-"))
    if known is None and not numbers:
        like = nearest(name, sorted(_BY_NAME))
        hint = f" Did you mean {like}?" if like else ""
        raise UsageError(
            f"--gpu {name} is not in the table.{hint} Known are {', '.join(one.name for one in ACCELERATORS)}. "
            f"Describe another one by hand: --gpu {_EXAMPLE}"
        )
    return _described(name, known, _numbers(text, numbers)) if numbers else _known(known)


def _known(found: Accelerator | None) -> Accelerator:
    assert found is not None, "checked by the caller"
    return found


def _numbers(text: str, numbers: str) -> dict[str, str]:
    found = dict[str, str]()
    for part in filter(None, (part.strip() for part in numbers.split(","))):
        field, equals, value = part.partition("=")
        if not equals or field not in _FIELDS:
            raise UsageError(f"--gpu {text}: {part!r} is none of {', '.join(f'{name}=…' for name in _FIELDS)}.")
        found[field] = value
    return found


def _described(name: str, base: Accelerator | None, given: dict[str, str]) -> Accelerator:
    if base is None:
        missing = [field for field in ("memory", "bandwidth", "link", "watts") if field not in given]
        missing += [] if set(given) & set(_PRECISIONS) else ["bf16 (or another precision)"]
        if missing:
            raise UsageError(f"--gpu {name}: it lacks {', '.join(missing)}; write it as {_EXAMPLE}")
    peaks = {one: _number(name, one, given[one]) for one in _PRECISIONS if one in given}
    link = None if "link" not in given else _link(name, given["link"])
    memory = None if "memory" not in given else _bytes(name, given["memory"])
    watts = None if "watts" not in given else _number(name, "watts", given["watts"])
    bandwidth = None if "bandwidth" not in given else _number(name, "bandwidth", given["bandwidth"])
    if base is not None:
        changed = ", ".join(f"{field} {value}" for field, value in given.items())
        return replace(
            base,
            name=f"{base.name} with {changed}",
            source=f"{base.source}; {changed} as given",
            memory_bytes=memory or base.memory_bytes,
            peaks={**base.peaks, **peaks},
            bandwidth=bandwidth or base.bandwidth,
            link=link or base.link,
            watts=watts or base.watts,
            full_watts=base.watts if watts else None,
        )
    assert memory is not None, "checked above"
    assert link is not None, "checked above"
    assert watts is not None, "checked above"
    assert bandwidth is not None, "checked above"
    return Accelerator(name, name, "other", re.escape(name), memory, peaks, bandwidth, link, watts, "given by --gpu")


def _number(name: str, field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UsageError(f"--gpu {name}: {field} is {text!r}, and not a number above 0, such as 989e12.")
    return value


def _bytes(name: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--gpu {name}: memory: {error}") from error


def _link(name: str, text: str) -> Link:
    known = LINKS.get(text.lower())
    if known is not None:
        return known
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if rate <= 0:
        raise UsageError(
            f"--gpu {name}: link is {text!r}; write bytes per second in one direction, such as 450e9, or one of "
            f"{', '.join(LINKS)}."
        )
    return Link(text, rate, "given by --gpu")
