"""The final lines of a run: paths and next commands."""

from __future__ import annotations

from collections.abc import Iterator

from ruamel.yaml import YAML

from shardyard.launch.describe import metrics_in_words
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.code import executed_afterwards
from shardyard.tracking.files import read_jsonl
from shardyard.tracking.metrics.record import evaluation_of
from shardyard.tracking.run.folder import RunFolder, read_metrics, typed


def ending_lines(folder: RunFolder, outcome: str) -> Iterator[str]:
    """The final lines of a run with this outcome."""
    if outcome == "finished":
        for sample in _last_samples(folder):
            yield f"sample       {sample}"
        yield f"run folder   {folder.path}"
        yield f"model        {folder.path / 'final'}"
        if measured := _last_evaluation(folder):
            yield f"held out     {measured}"
        yield f"try          {_next_command(folder)}"
    else:
        info = folder.info()
        saved = "with a checkpoint" if any(folder.checkpoints.glob("step-*")) else "before its first checkpoint"
        yield f"{outcome} at step {info.step} of {info.total_steps}, {saved}"
        yield f"run folder   {folder.path}"
        yield f"resume       shardyard resume {typed(folder.path)}"
    if any(folder.wandb.glob("offline-run-*")):
        yield f"W&B          shardyard wandb sync {typed(folder.path)}"


def _last_evaluation(folder: RunFolder) -> str:
    """`loss 0.4132, accuracy 0.8641`; "" without an evaluation."""
    measured = [found for line in read_metrics(folder.metrics) if (found := evaluation_of(line))]
    return metrics_in_words(measured[-1]) if measured else ""


def _recipe_of(folder: RunFolder) -> dict[str, object]:
    """The recipe, read without checks: its data may no longer exist."""
    fields: dict[str, object] = YAML(typ="safe", pure=True).load(folder.resolved.read_text(encoding="utf-8"))
    return fields


def _objective_of(folder: RunFolder) -> str:
    return str(_recipe_of(folder)["objective"])


def _next_command(folder: RunFolder) -> str:
    trust = " --trust" if any(executed_afterwards(_recipe_of(folder))) else ""
    if objective_spec(_objective_of(folder)).generates:
        return f'shardyard sample {typed(folder.path)} "your prompt"{trust}'
    return f"shardyard eval {typed(folder.path)}{trust}"


def _last_samples(folder: RunFolder) -> list[str]:
    samples = read_jsonl(folder.samples) if folder.samples.exists() else []
    last = [sample for sample in samples if sample["step"] == samples[-1]["step"]] if samples else []
    between = " → " if objective_spec(_objective_of(folder)).answers else ""
    return [" ".join(f"{sample['prompt']}{between}{sample['text']}".split())[:160] for sample in last]
