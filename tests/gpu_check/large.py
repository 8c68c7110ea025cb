"""Parts about large models: memory that is counted, waits, kernels, compiled blocks, axes of several GPUs, speed."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parts import Failed, Part, Setting, is_there
from runs import ALL, llama, losses_of, shardyard, train, write_recipe

# Steps whose waits are counted; the ones before choose kernels and grow memory.
_COUNTED = (3, 4, 5)
# The only place of Shardyard that waits for a result, when the next step is under way.
_ALLOWED = "shardyard/engine/transfer.py"
_PACKAGES = ("shardyard", "deepspeed", "transformers", "torch")
# The share of an H100's peak in bf16 that a step reaches, by model.
_GOALS = {"124m": 0.45, "350m": 0.50, "1.3b": 0.53}
_SIZES = {
    "124m": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "350m": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "1.3b": {"n_layer": 24, "n_head": 16, "n_embd": 2048},
}


def memory(setting: Setting) -> dict[str, Any]:
    """A dry run's count of what a rank allocates, and the plan, against the peak that torch.cuda measures."""
    from shardyard.engine.memory.measured import read_allocated

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for stage in (1, 3):
            job = _job(Path(scratch) / str(stage), setting, stage, measure=True)
            lines = _run(job)
            if not setting.rehearses:
                peak = max(line.get("memory/peak_allocated_bytes", 0) for line in lines)
                (counted,) = read_allocated(job.folder)
                found[f"stage_{stage}_GiB"] = peak / 2**30
                found[f"stage_{stage}_counted_over_peak"] = counted.total_bytes / peak
                found[f"stage_{stage}_planned_over_peak"] = job.plan.memory.device_bytes / peak
    off = {name: ratio for name, ratio in found.items() if "_over_peak" in name and abs(ratio - 1) > 0.1}
    if off:
        raise Failed(f"more than 10 % beside the peak of the GPU: {off}")
    return found or {"runs": 2}


@dataclass
class _Waits:
    step: int = 0
    found: dict[int, list[str]] = field(default_factory=dict)


@contextmanager
def _waits(setting: Setting) -> Iterator[Any]:
    """Counts where the host waits for the GPU, by step: torch.cuda tells, or the rehearsal."""
    if setting.pretended:
        from support.rehearsal.waits import watching

        with watching() as found:
            yield found
        return
    import torch

    waits = _Waits()

    def add(message: Warning | str, *_: object, **__: object) -> None:
        if "synchronizing CUDA operation" in str(message):
            waits.found.setdefault(waits.step, []).append(_place())

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = add
        if setting.gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if setting.gpu:
                torch.cuda.set_sync_debug_mode("default")


def _place() -> str:
    """File and function of the nearest frame of a package that is not torch; else of torch."""
    frame: Any = sys._getframe(1)
    places = []
    while frame is not None:
        parts = frame.f_code.co_filename.split("/")
        package = next((name for name in _PACKAGES if name in parts), None)
        if package is not None:
            places.append((package, f"{'/'.join(parts[parts.index(package) :])}:{frame.f_code.co_name}"))
        frame = frame.f_back
    own = [place for package, place in places if package != "torch"]
    return own[0] if own else places[0][1] if places else "?"


def waits(setting: Setting) -> dict[str, Any]:
    """A step waits for the GPU only within DeepSpeed: its metrics are read when the next step is under way."""
    from shardyard.engine.session import Session

    found: dict[str, Any] = {}
    next_batch = Session.next_batch
    with tempfile.TemporaryDirectory() as scratch:
        for stage in (1, 3):
            job = _job(Path(scratch) / str(stage), setting, stage)
            with _waits(setting) as counted:

                def next_and_count(session: Any, counted: Any = counted) -> Any:
                    counted.step += 1
                    batch = next_batch(session)
                    if setting.pretended:
                        from support.rehearsal.waits import mark_host

                        mark_host(batch.micro_batches)
                    return batch

                Session.next_batch = next_and_count  # type: ignore[method-assign]
                try:
                    _run(job)
                finally:
                    Session.next_batch = next_batch  # type: ignore[method-assign]
            places = [place for step in _COUNTED for place in counted.found.get(step, [])]
            if own := sorted({place for place in places if "shardyard/" in place and _ALLOWED not in place}):
                raise Failed(f"at stage {stage}, steps {_COUNTED} wait for the GPU in {', '.join(own)}")
            found[f"stage_{stage}_waits_a_step"] = len(places) / len(_COUNTED)
    return found


def _job(folder: Path, setting: Setting, stage: int, *, measure: bool = False) -> Any:
    """A run of one rank, to be trained in this process."""
    from shardyard.engine.job import Job
    from shardyard.launch.run.prepare import prepare
    from shardyard.launch.run.world import world_of
    from shardyard.recipe.loading.load import dump_recipe, load_recipe
    from shardyard.tracking.run.folder import RunFolder

    steps = 4 if measure else 6
    sections = {"train": {"steps": steps}, "checkpoint": {"every": steps}}
    path = write_recipe(folder, setting, setting.precision("bf16"), stage, **sections)
    recipe = load_recipe(str(path)).recipe
    plan = prepare(recipe, world_of(recipe.cluster, local=True))
    text = dump_recipe(recipe)
    runs = RunFolder.create(folder / "runs", recipe.name, text, text, world_size=1, total_steps=plan.steps)
    return Job(recipe, plan, runs, measure=measure)


def _run(job: Any) -> list[dict[str, Any]]:
    from shardyard.launch.run.local import run_local
    from shardyard.tracking.run.folder import read_metrics

    outcome = run_local(job, keep_group=True)
    if outcome != "finished":
        raise Failed(f"the run is {outcome}")
    return list(read_metrics(job.folder.metrics))


def documents(setting: Setting) -> dict[str, Any]:
    """Documents of a row are kept apart by a mask, by varlen_attn and by FlashAttention with the same losses."""
    ways = ["sdpa", "varlen", *(["flash_attention_2"] if setting.gpu and is_there("flash_attn") else [])]
    return _same_losses(setting, {way: {"model": llama(setting, attention=way)} for way in ways}, 3e-2)


def compiled(setting: Setting) -> dict[str, Any]:
    """Compiled blocks give the losses of the others; the speed of both is recorded."""
    ways = {name: {"model": llama(setting, compile=name == "compiled")} for name in ("plain", "compiled")}
    return _same_losses(setting, ways, 3e-2, steps=24)


def _same_losses(setting: Setting, ways: dict[str, Any], most: float, steps: int = 8) -> dict[str, Any]:
    """The same run in several ways: losses differ by no more than `most`, and speed and memory are reported."""
    found: dict[str, Any] = {}
    losses = {}
    sections = {"train": {"steps": steps}, "checkpoint": {"every": steps}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, way in ways.items():
            lines = train(Path(scratch) / name, setting, setting.precision("bf16"), 1, **sections, **way)
            losses[name] = losses_of(lines)
            if not setting.rehearses:
                found[f"{name}_tokens_per_second"] = _median(lines, "perf/tokens_per_second")
                found[f"{name}_GiB"] = max(line.get("memory/peak_allocated_bytes", 0) for line in lines) / 2**30
    plain = next(iter(losses.values()))
    off = max(abs(one - other) for some in losses.values() for one, other in zip(some, plain, strict=True))
    if not off < most:
        raise Failed(f"the losses differ by {off:.2e}: {losses}")
    return {**found, "largest_difference": off}


def _median(lines: list[dict[str, Any]], name: str) -> float:
    """Over the second half of the steps: the first ones choose kernels and compile."""
    values = [line[name] for line in lines if name in line]
    return statistics.median(values[len(values) // 2 :]) if values else 0.0


def tensor(setting: Setting) -> dict[str, Any]:
    """Two GPUs that share every matrix of a Llama train as one does."""
    return _axis(setting, "tensor", llama(setting))


def sequence(setting: Setting) -> dict[str, Any]:
    """Two GPUs that share the tokens of each row train as one does."""
    return _axis(setting, "sequence", llama(setting))


def expert(setting: Setting) -> dict[str, Any]:
    """Two GPUs that share the experts of a Mixtral train as one does."""
    model = llama(setting)
    config = {**model["config"], "num_key_value_heads": 2, "num_local_experts": 4}
    return _axis(setting, "expert", {**model, "family": "mixtral", "config": config})


def _axis(setting: Setting, axis: str, model: dict[str, Any]) -> dict[str, Any]:
    """Through Ray on two GPUs, against one GPU."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        one = train(Path(scratch) / "one", setting, "bf16", 1, model=model)
        shared = {"parallel": {axis: 2}, "cluster": {"workers": 2, "gpus_per_worker": 1}}
        two = train(Path(scratch) / "two", setting, "bf16", 1, ray=True, model=model, **shared)
    off = max(abs(mine - its) for mine, its in zip(losses_of(two), losses_of(one), strict=True))
    if not off < 3e-2:
        raise Failed(f"with {axis}: 2 the losses are {losses_of(two)}, on one GPU {losses_of(one)}")
    if not setting.rehearses:
        for name, lines in (("one", one), ("two", two)):
            found[f"{name}_tokens_per_second"] = _median(lines, "perf/tokens_per_second")
            found[f"{name}_GiB"] = max(line.get("memory/peak_allocated_bytes", 0) for line in lines) / 2**30
    return {**found, "largest_difference": off}


def speed_124m(setting: Setting) -> dict[str, Any]:
    """The platform's own step of GPT-2 124M with compiled blocks: tokens a second and MFU against the goal."""
    return _speed(setting, "124m", micro_batch=32, length=1024)


def speed_350m(setting: Setting) -> dict[str, Any]:
    """The same at 350M."""
    return _speed(setting, "350m", micro_batch=16, length=1024)


def speed_1300m(setting: Setting) -> dict[str, Any]:
    """The same at 1.3B, as GPT-3 XL, with rows of 2,048 tokens."""
    return _speed(setting, "1.3b", micro_batch=4, length=2048)


def _speed(setting: Setting, size: str, *, micro_batch: int, length: int) -> dict[str, Any]:
    from shardyard.tracking.metrics.meters import device_name

    steps, accumulation = (4, 2) if setting.rehearses else (24, 4)
    sections: dict[str, Any] = {
        "train": {"steps": steps, "micro_batch": micro_batch, "global_batch": micro_batch * accumulation},
        "checkpoint": {"every": steps},
        "data": {"isolate_documents": False, "sequence_length": length},
        "optimizer": {"lr": 3e-4},
    }
    if setting.rehearses:
        sections["train"] |= {"micro_batch": 2, "global_batch": 2 * accumulation}
        sections["data"] |= {"sequence_length": 32}
    else:
        config = {**_SIZES[size], "n_positions": length, "vocab_size": 50304}
        sections["model"] = {"config": config, "compile": True, "activation_checkpointing": False}
    with tempfile.TemporaryDirectory() as scratch:
        lines = train(Path(scratch), setting, setting.precision("bf16"), 1, **sections)
        (run,) = (Path(scratch) / "runs").iterdir()
        predicted = json.loads((run / "run.json").read_text()).get("predicted", {})
    speed, mfu = _median(lines, "perf/tokens_per_second"), _median(lines, "perf/mfu")
    found: dict[str, Any] = {"tokens_per_second": speed, "mfu": mfu, "goal": _GOALS[size]}
    if not setting.rehearses:
        found["forecast_over_measured"] = (predicted.get("tokens_per_second") or 0.0) / speed
        name = device_name()
        if "H100" in name and not any(slower in name for slower in ("PCIe", "NVL")) and mfu < _GOALS[size]:
            raise Failed(f"{size}: MFU is {mfu:.3f} at {speed:.0f} tokens/s, and the goal is {_GOALS[size]}")
    return found


def dry_run(setting: Setting) -> dict[str, Any]:
    """`shardyard launch RECIPE --dry-run 2` beside a GPU: its ranks compute on the CPU, and leave the GPU alone."""
    with tempfile.TemporaryDirectory() as scratch:
        code, output = shardyard(["launch", "gpt/llama2-13b", "--dry-run", "2", "--runs-dir", scratch], Path(scratch))
    # The table of its memory ends so, where no terminal draws its title.
    if code != 0 or not any(line.startswith("all\t") for line in output.splitlines()):
        raise Failed(f"the dry run ends with {code}:\n{output[-3000:]}")
    return {"lines": len(output.splitlines())}


SPEED = (
    Part("speed-124m", "GPT-2 124M on the platform: tokens/s, MFU against its goal", ALL, speed_124m),
    Part("speed-350m", "350M on the platform: tokens/s, MFU against its goal", ALL, speed_350m),
    Part("speed-1.3b", "1.3B on the platform: tokens/s, MFU against its goal", ALL, speed_1300m),
)
PARTS = (
    Part("memory", "memory that a dry run counts, and the plan, against the GPU's peak", ALL, memory),
    Part("waits", "where a step waits for the GPU", ALL, waits),
    Part("documents", "documents of a row apart by mask, varlen_attn, FlashAttention", ALL, documents),
    Part("compile", "compiled blocks against others", ALL, compiled),
    Part("dry-run", "a dry run of a large recipe", ("ray", *ALL), dry_run),
    Part("tensor", "tensor parallelism on two GPUs against one", ("ray", *ALL), tensor, gpus=2),
    Part("sequence", "sequence parallelism on two GPUs against one", ("ray", *ALL), sequence, gpus=2),
    Part("expert", "expert parallelism on two GPUs against one", ("ray", *ALL), expert, gpus=2),
)
