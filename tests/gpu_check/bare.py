"""Parts of the check that need no Ray and no DeepSpeed: arithmetic, memory, speed and tensors of one GPU."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from parts import ROOT, Failed, Part, Setting

_MODEL = ("transformers", "pydantic", "ruamel.yaml")


def device(setting: Setting) -> dict[str, Any]:
    """The device is known: its peak, without which there is no MFU, and what it computes with."""
    import torch

    from shardyard.tracking.metrics.meters import device_name, memory_metrics, peak_flops

    if not setting.gpu:
        return {"name": device_name(), "peak_TFLOPs": None}
    properties = torch.cuda.get_device_properties(0)
    peak = peak_flops(device_name(), "bf16")
    if peak is None:
        raise Failed(
            f"{device_name()} is not in the table of planning/forecast/accelerators.py, so runs on it would have no MFU"
        )
    if not memory_metrics().get("memory/peak_allocated_bytes", -1) >= 0:
        raise Failed("no memory of the device is measured")
    return {
        "name": device_name(),
        "peak_TFLOPs": peak / 1e12,
        "memory_GiB": properties.total_memory / 2**30,
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    }


def watch(setting: Setting) -> dict[str, Any]:
    """The machine watch samples every GPU: use, memory, power, temperature."""
    import torch

    from shardyard.tracking.metrics.machine import Sampler

    sampler = Sampler(gpu=setting.gpu)
    sample = sampler()
    wanted = {f"gpu.{index}.memoryUsedBytes" for index in range(torch.cuda.device_count())}
    if setting.gpu and (lacking := wanted - set(sample)):
        raise Failed(f"the driver tells no {', '.join(sorted(lacking))}")
    return {name: value for name, value in sample.items() if name.startswith(("gpu.", "cpu."))}


def losses(setting: Setting) -> dict[str, Any]:
    """The losses in 32 bits on the device are those in 64 bits on the CPU."""
    import torch

    from shardyard.objectives import losses as ours

    torch.manual_seed(0)
    rows, classes = (8, 11) if setting.rehearses else (4096, 32000)
    logits, labels = torch.randn(rows, classes), torch.randint(classes, (rows,))
    labels[::5] = -100
    other = torch.randn(rows, classes)
    pairs = torch.randn(4, rows)
    vectors = torch.nn.functional.normalize(torch.randn(2, rows, 64), dim=-1)
    cases = {
        "cross_entropy": lambda t: ours.cross_entropy(t(logits), t(labels), label_smoothing=0.1),
        "distillation": lambda t: ours.distillation(t(logits), t(other), temperature=2.0, mask=t(labels) != -100),
        "dpo": lambda t: ours.dpo(*t(pairs), beta=0.1),
        "info_nce": lambda t: ours.info_nce(*t(vectors), 10.0),
        "log_probability": lambda t: ours.sequence_log_probability(t(logits)[None], t(labels)[None]).sum(),
    }
    found = {}
    for name, case in cases.items():
        exact = float(case(lambda x: x.double() if x.is_floating_point() else x))
        here = float(case(lambda x: x.to(setting.device)))
        found[name] = abs(here - exact) / abs(exact)
        if not found[name] < 1e-4:
            raise Failed(f"{name} is {here} on the device and {exact} in 64 bits")
    return {f"{name}_relative_error": value for name, value in found.items()}


def attention(setting: Setting) -> dict[str, Any]:
    """Attention as recipes ask for it (sdpa) against its formula in 64 bits, forward and backward."""
    import torch
    from torch.nn import functional

    batch, heads, length, width = (1, 2, 16, 8) if setting.rehearses else (4, 16, 1024, 64)
    found: dict[str, Any] = {}
    for name, dtype, limit in (
        ("bf16", torch.bfloat16, 2e-2),
        ("fp16", torch.float16, 4e-3),
        ("fp32", torch.float32, 1e-3),
    ):
        torch.manual_seed(0)
        exact = [torch.randn(batch, heads, length, width, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        here = [x.detach().to(setting.device, dtype).requires_grad_() for x in exact]
        scores = exact[0] @ exact[1].transpose(-1, -2) / math.sqrt(width)
        hidden = torch.ones(length, length).triu(1).bool()
        expected = scores.masked_fill(hidden, -math.inf).softmax(-1) @ exact[2]
        got = functional.scaled_dot_product_attention(*here, is_causal=True)
        expected.square().mean().backward()
        got.float().square().mean().backward()
        errors = [
            _distance(got, expected),
            *(_distance(mine.grad, its.grad) for mine, its in zip(here, exact, strict=True)),
        ]
        found[f"{name}_relative_error"] = max(errors)
        if not max(errors) < limit:
            raise Failed(f"in {name} attention or its gradients are {max(errors):.2e} off, more than {limit}")
    return found


def varlen(setting: Setting) -> dict[str, Any]:
    """Attention within documents by torch's varlen_attn against one mask for the row, forward and backward, in bf16."""
    import torch
    from torch.nn import functional
    from torch.nn.attention.varlen import varlen_attn

    heads, groups, width = (2, 1, 8) if setting.rehearses else (16, 4, 64)
    lengths = [3, 1, 12] if setting.rehearses else [300, 1, 723]
    total = sum(lengths)
    torch.manual_seed(0)
    sizes = (heads, groups, groups)
    masked = [torch.randn(total, size, width, device=setting.device, dtype=torch.bfloat16) for size in sizes]
    whole, alone = ([one.clone().requires_grad_() for one in masked] for _ in range(2))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(setting.device)
    seen = (document[:, None] == document[None]).tril()
    query, key, value = (one.transpose(0, 1)[None] for one in whole)
    options: dict[str, Any] = {"enable_gqa": True}
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, **options)[0].transpose(0, 1)
    if setting.rehearses:
        cut = [one.split(lengths) for one in alone]
        parts = ([one.transpose(0, 1)[None] for one in part] for part in zip(*cut, strict=True))
        outs = [functional.scaled_dot_product_attention(*part, is_causal=True, **options)[0] for part in parts]
        got = torch.cat([one.transpose(0, 1) for one in outs])
    else:
        ends = torch.tensor([0, *lengths]).cumsum(0).to(setting.device, torch.int32)
        most = max(lengths)
        out = varlen_attn(alone[0], alone[1], alone[2], ends, ends, most, most, window_size=(-1, 0), enable_gqa=True)
        got = out if isinstance(out, torch.Tensor) else out[0]
    expected.float().square().mean().backward()
    got.float().square().mean().backward()
    pairs = [(got, expected), *((mine.grad, its.grad) for mine, its in zip(alone, whole, strict=True))]
    worst = max(_distance(mine, its.double().cpu()) for mine, its in pairs)
    if not worst < 3e-2:
        raise Failed(f"varlen_attn or its gradients are {worst:.2e} off the mask of documents, more than 3e-2")
    return {"bf16_relative_error": worst}


def _distance(mine: Any, exact: Any) -> float:
    """Relative, by the norm."""
    return float((mine.detach().double().cpu() - exact.detach()).norm() / exact.detach().norm())


def optimizers(setting: Setting) -> dict[str, Any]:
    """The fused AdamW, Lion and Adagrad make the same steps on the device as in 64 bits on the CPU."""
    import torch

    from shardyard.optim.lion_adagrad import Adagrad, Lion

    makes = {
        "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
        "lion": lambda p: Lion(p, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1),
        "adagrad": lambda p: Adagrad(p, lr=1e-2, eps=1e-10, weight_decay=0.1),
    }
    found = {}
    for name, make in makes.items():
        ends = []
        for where, dtype in (("cpu", torch.float64), (setting.device, torch.float32)):
            torch.manual_seed(0)
            start, gradients = torch.randn(513), torch.randn(5, 513)
            weight = torch.nn.Parameter(start.to(where, dtype))
            optimizer = make([weight])
            for gradient in gradients:
                weight.grad = gradient.to(where, dtype)
                optimizer.step()
            ends.append(weight.detach().double().cpu())
        found[f"{name}_error"] = float((ends[0] - ends[1]).abs().max())
        if not found[f"{name}_error"] < 1e-5:
            raise Failed(f"{name} is {found[f'{name}_error']:.2e} off after five steps")
    return found


def eight_bits(setting: Setting) -> dict[str, Any]:
    """AdamW in 8 bits is near that in 32 bits at a quarter of the states; in pages it is the same to the bit, and its
    states stay there when they are saved and loaded."""
    import torch

    from shardyard.optim.lion_adagrad import client_optimizer
    from shardyard.recipe.schema import Optimizer

    size = 2**13 if setting.rehearses else 2**22
    torch.manual_seed(0)
    start, gradients = torch.randn(size, device=setting.device), torch.randn(6, size, device=setting.device)

    def train(name: Any, *, saved: bool = False) -> tuple[Any, Any]:
        weight = torch.nn.Parameter(start.clone())
        settings = Optimizer(name=name, lr=1e-2, weight_decay=0.1)
        if name == "adamw":
            optimizer: Any = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
        else:
            optimizer = client_optimizer(settings, torch.device(setting.device))([weight])
        for number, gradient in enumerate(gradients):
            if saved and number == 3:
                state = optimizer.state_dict()
                optimizer = client_optimizer(settings, torch.device(setting.device))([weight])
                optimizer.load_state_dict(state)
            weight.grad = gradient
            optimizer.step()
        return weight.detach(), optimizer.state[weight]

    wide, eight = train("adamw")[0], train("adamw_8bit")
    kept = sum(one.nbytes for name, one in eight[1].items() if name.startswith(("state", "absmax")))
    found = {"bytes_a_weight": kept / size}
    found["mean_difference_of_updates"] = float((eight[0] - wide).abs().mean() / (wide - start).abs().mean())
    if not found["mean_difference_of_updates"] < 0.05:
        raise Failed(f"updates in 8 bits differ by {found['mean_difference_of_updates']:.3f}, more than 0.05")
    for name in ("adamw_8bit",) if setting.rehearses else ("adamw_8bit", "paged_adamw_8bit"):
        for saved in (False, True):
            weight, state = train(name, saved=saved)
            if not torch.equal(weight, eight[0]):
                raise Failed(f"{name}{', saved and loaded,' if saved else ''} differs from adamw_8bit")
            if name.startswith("paged") and not all(getattr(state[one], "is_paged", False) for one in _PAGED):
                raise Failed(f"the states of {name} are not in pages{' after they were loaded' if saved else ''}")
    return found


_PAGED = ("state1", "state2")


def tensors(setting: Setting) -> dict[str, Any]:
    """Weights, optimizer and random states of a checkpoint come back verified, and training goes on the same."""
    import torch

    from shardyard.engine.checkpoint import files

    def begin() -> tuple[Any, Any]:
        torch.manual_seed(3)
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        model = torch.nn.Sequential(layer, torch.nn.Linear(64, 64)).to(setting.device)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train(model: Any, optimizer: Any, steps: range) -> list[float]:
        found = []
        for step in steps:
            rows = torch.randn(8, 16, 64, generator=torch.Generator().manual_seed(step)).to(setting.device)
            loss = (model(rows) - rows).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    with _deterministic(), tempfile.TemporaryDirectory() as scratch:
        straight = train(*begin(), range(6))
        model, optimizer = begin()
        first = train(model, optimizer, range(3))
        _save(Path(scratch), model, optimizer, setting)
        folder = files.committed_checkpoints(Path(scratch))[-1]
        if damaged := files.damaged_files(folder, files.read_manifest(folder)):
            raise Failed(f"{damaged} differ from the manifest")
        model, optimizer = begin()
        torch.rand(7, device=setting.device)
        state = torch.load(folder / "state.pt", map_location=setting.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["cpu"].cpu())
        if setting.gpu:
            torch.cuda.set_rng_state(state["device"].cpu())
        resumed = first + train(model, optimizer, range(3, 6))
    if resumed != straight:
        raise Failed(f"with a break the losses are {resumed}, without one {straight}")
    return {"steps": len(straight), "last_loss": straight[-1]}


def _save(folder: Path, model: Any, optimizer: Any, setting: Setting) -> None:
    import torch

    from shardyard.engine.checkpoint import files
    from shardyard.engine.checkpoint.blocks import written

    partial = files.partial_folder(folder, 3)
    partial.mkdir(parents=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "cpu": torch.get_rng_state()}
    if setting.gpu:
        state["device"] = torch.cuda.get_rng_state()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    entry = written(partial / "state.pt", [buffer.getbuffer()])
    files.commit(folder, 3, {"state.pt": entry}, world_size=1, zero_stage=0)


@contextlib.contextmanager
def _deterministic() -> Any:
    import torch

    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def step_124m(setting: Setting) -> dict[str, Any]:
    """A step of GPT-2 124M in bf16: the loss falls, memory keeps to the plan, tokens a second and MFU."""
    return _steps(setting, "gpt2-124m", micro_batch=16)


def step_350m(setting: Setting) -> dict[str, Any]:
    """The same of GPT-2 355M."""
    return _steps(setting, "gpt2-355m", micro_batch=16)


def step_1500m(setting: Setting) -> dict[str, Any]:
    """The same for GPT-2 1.5B, of which a GPU of 80 GB holds weights, gradients and states."""
    return _steps(setting, "gpt2-1.5b", micro_batch=8)


def _steps(setting: Setting, name: str, *, micro_batch: int) -> dict[str, Any]:
    """Train on one batch again and again: bf16 weights, their copy in fp32 in the optimizer, as at ZeRO stage 0."""
    import torch

    from shardyard.objectives.causal_lm.loss import causal_lm_loss
    from shardyard.tracking.metrics.meters import Throughput, device_name, peak_flops

    recipe, plan, model = _planned(setting, name, micro_batch)
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=3e-3 if setting.rehearses else 3e-4, fused=True)
    length = plan.tokens_per_row
    torch.manual_seed(1)
    tokens = torch.randint(
        min(1000, plan.architecture.vocabulary), (plan.micro_batch, length + 1), device=setting.device
    )
    positions = torch.arange(length, device=setting.device).expand(plan.micro_batch, length)
    peak = peak_flops(device_name(), "bf16")
    meter = Throughput(5, plan.flops_per_token, peak)
    steps, found, metrics = (4 if setting.rehearses else 25), [], {}
    for step in range(steps):
        started = time.monotonic()
        loss = causal_lm_loss(model, tokens[:, :-1], tokens[:, 1:], positions) / (plan.micro_batch * length)
        loss.backward()
        _update(model, masters, optimizer)
        found.append(float(loss.detach()))
        if step >= steps // 2:  # The first ones choose kernels and grow memory.
            metrics = meter.update(plan.micro_batch * length, time.monotonic() - started)
    if not found[-1] < found[0] - 0.1 or not math.isfinite(found[-1]):
        raise Failed(f"the loss went from {found[0]:.3f} to {found[-1]:.3f} in {steps} steps on one batch")
    return {
        "micro_batch": plan.micro_batch,
        "first_loss": found[0],
        "last_loss": found[-1],
        "tokens_per_second": metrics["perf/tokens_per_second"],
        "mfu": metrics.get("perf/mfu"),
        **_forecast(setting, recipe, plan, metrics["perf/tokens_per_second"]),
        **_memory(setting, plan),
    }


def _forecast(setting: Setting, recipe: Any, plan: Any, measured: float) -> dict[str, Any]:
    """What `shardyard plan --gpu` says of the step; this script's own optimizer, which copies weights, is slower."""
    from shardyard.planning.forecast.accelerators import by_device
    from shardyard.planning.forecast.forecast import forecast
    from shardyard.planning.forecast.hardware import Hardware
    from shardyard.tracking.metrics.meters import device_name

    device = by_device(device_name() if setting.gpu else "H100 PCIe")
    if device is None:
        return {}
    found = forecast(recipe, plan, Hardware(device, 1, 1)).tokens_per_second
    ratio = {} if setting.rehearses else {"forecast_over_measured": found / measured}
    return {"forecast_tokens_per_second": found, **ratio}


def _update(model: Any, masters: list[Any], optimizer: Any) -> None:
    """Gradients in bf16 become those of the fp32 copies, one at a time, and the copies the new weights."""
    for weight, master in zip(model.parameters(), masters, strict=True):
        master.grad, weight.grad = weight.grad.float(), None
    optimizer.step()
    for weight, master in zip(model.parameters(), masters, strict=True):
        weight.data.copy_(master.data)
        master.grad = None


def _memory(setting: Setting, plan: Any) -> dict[str, Any]:
    """Measured against planned. An estimate that is too low lets runs die; one far too high wastes the GPU."""
    import torch

    if setting.rehearses:
        return {"planned_GiB": plan.memory.device_bytes / 2**30}
    measured = torch.cuda.max_memory_allocated()
    ratio = measured / plan.memory.device_bytes
    if not 0.5 < ratio < 1.15:
        raise Failed(
            f"{measured / 2**30:.2f} GiB are allocated, the plan says {plan.memory.device_bytes / 2**30:.2f} GiB "
            f"({ratio:.2f} times as much)"
        )
    return {"measured_GiB": measured / 2**30, "measured_over_planned": ratio}


def _planned(setting: Setting, name: str, micro_batch: int) -> tuple[Any, Any, Any]:
    """A shipped recipe for one GPU at stage 0, its plan, and its model with its own first weights in bf16."""
    import torch

    from shardyard.launch.run.prepare import prepare
    from shardyard.models.build import architecture_config, construct
    from shardyard.models.initialise import initialise
    from shardyard.planning.plan import World
    from shardyard.recipe.loading.load import load_recipe

    changes = [
        f"train.global_batch={micro_batch}",
        f"train.micro_batch={micro_batch}",
        "zero.stage=0",
        "cluster.workers=1",
    ]
    changes += ["data.streams=1"]
    if setting.rehearses:
        changes += ["model.config={vocab_size: 257, n_layer: 2, n_head: 2, n_embd: 32, n_positions: 32}"]
        changes += ["data.sequence_length=32", "train.global_batch=4", "train.micro_batch=4"]
    recipe = load_recipe(str(ROOT / "recipes" / "gpt" / f"{name}.yaml"), changes).recipe
    plan = prepare(recipe, World(size=1, gpu=setting.gpu))
    no_ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = architecture_config(recipe.model, vocabulary=plan.architecture.vocabulary, special_tokens=no_ids)
    model = construct(recipe.model, config)
    initialise(model, seed=recipe.train.seed, gathered=lambda _: contextlib.nullcontext())
    if setting.gpu:
        torch.cuda.reset_peak_memory_stats()
    return recipe, plan, model.to(setting.device, torch.bfloat16)


PARTS = (
    Part("device", "the GPU is known, with its peak and its memory", (), device),
    Part("watch", "use, memory, power and temperature are sampled", ("psutil",), watch),
    Part("losses", "losses against 64 bits", (), losses),
    Part("attention", "attention and its gradients against 64 bits", (), attention),
    Part("varlen", "attention within documents against a mask of them", (), varlen),
    Part("optimizers", "fused AdamW, Lion and Adagrad against 64 bits", ("pydantic",), optimizers),
    Part(
        "eight-bits",
        "AdamW in 8 bits, in pages too, beside 32 bits",
        ("pydantic", "bitsandbytes"),
        eight_bits,
        kernels="bitsandbytes imports those of CUDA as soon as torch sees a GPU",
    ),
    Part("tensors", "a checkpoint's tensors come back to the bit", (), tensors),
    Part("step-124m", "GPT-2 124M: loss, memory against the plan, tokens/s, MFU", _MODEL, step_124m),
    Part("step-350m", "GPT-2 355M: loss, memory against the plan, tokens/s, MFU", _MODEL, step_350m),
    Part("step-1.5b", "GPT-2 1.5B: loss, memory against the plan, tokens/s, MFU", _MODEL, step_1500m),
)
