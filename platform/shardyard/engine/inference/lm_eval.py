"""Tasks of EleutherAI's lm-evaluation-harness on an exported model, offline if the task allows it."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shardyard.data.datasets import dataset_files
from shardyard.engine.checkpoint.tensor_files import only_tensors
from shardyard.engine.inference.load import export_checkpoint, recipe_of
from shardyard.engine.inference.spread import spread_of
from shardyard.engine.standard_errors import of_share
from shardyard.errors import DataError, UsageError
from shardyard.extras import install_command
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.tracking.run.folder import RunFolder, typed

# A `dataset_path` with this prefix names a Shardyard dataset instead of one of the hub.
DATASET_PREFIX = "shardyard:"


def measure_run(
    folder: RunFolder, tasks: Sequence[str], *, step: int | None = None, limit: int | None = None, trust: bool = False
) -> dict[str, dict[str, float]]:
    """`run_tasks` on the final model of a run or the model of a checkpoint.

    Raises:
        UsageError: lm-eval is not installed, a task does not exist, or the model is not a causal language model.
        RunFolderError, CheckpointError: the model does not exist.
    """
    recipe = recipe_of(folder, trust=trust)
    objective = recipe.objective
    if recipe.model.module is not None:
        raise UsageError(
            f"lm-eval loads models of transformers, and this run trained a module of its own ({recipe.model.module}); "
            f"`shardyard eval {typed(folder.path)}` measures it on its held-out data."
        )
    if objective_spec(objective).auto_class != "AutoModelForCausalLM":
        raise UsageError(f"lm-eval measures models that continue text, and this run trained one for {objective}.")
    final = folder.path / "final"
    if step is None and final.is_dir():
        return run_tasks(final, tasks, limit=limit, trust=trust)
    with tempfile.TemporaryDirectory(prefix="shardyard-") as scratch:
        return run_tasks(export_checkpoint(folder, step, Path(scratch) / "model", trust=trust), tasks, limit=limit)


def run_tasks(
    model: Path, tasks: Sequence[str], *, limit: int | None = None, batch_size: int = 8, trust: bool = False
) -> dict[str, dict[str, float]]:
    """Metrics of each task by name: task → metric → value.

    Args:
        model: folder that `AutoModelForCausalLM` loads.
        tasks: names of lm-eval's tasks, or paths of task files (YAML); a file may read a dataset with
            `dataset_path: shardyard:NAME`.
        limit: maximum number of documents of each task.
        trust: load model files that may execute code.

    Raises:
        UsageError: lm-eval is not installed, or a task does not exist or is invalid.
        CheckpointError: the model holds more than tensors.
        DataError: a dataset does not exist.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(f"lm-eval is not installed; `{install_command('eval')}` adds it.") from error
    configs = [_task(task) for task in tasks]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # lm-eval then lets accelerate divide the model over all devices and the memory.
    several = {"parallelize": True} if spread_of(model, device) is not None and device.type != "cpu" else {}
    datasets.disable_progress_bars()
    # lm-eval prints progress, and warnings that do not apply to a local folder.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], only_tensors(trust=trust):
        try:
            found = lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(model), "dtype": "auto", **several},
                tasks=configs,
                limit=limit,
                batch_size=batch_size,
                device=device.type,
                bootstrap_iters=0,
                log_samples=False,
                task_manager=TaskManager(include_defaults=any(isinstance(config, str) for config in configs)),
            )
        except (KeyError, ValueError, FileNotFoundError) as error:
            raise UsageError(f"lm-eval cannot run {', '.join(tasks)}: {_first_line(error)}") from error
    assert found is not None, "this is the only process"
    return {task: _with_errors(_numbers(metrics), metrics["sample_len"]) for task, metrics in found["results"].items()}


def _task(name: str) -> str | dict[str, object]:
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        return name
    try:
        config = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise UsageError(f"the task {name} cannot be read: {_first_line(error)}") from error
    if not isinstance(config, dict) or "task" not in config:
        raise UsageError(f"{name} is not an lm-eval task: it lacks `task`; docs/evaluation.md shows one.")
    source = str(config.get("dataset_path", ""))
    if source.startswith(DATASET_PREFIX):
        config |= _from_dataset(source.removeprefix(DATASET_PREFIX), name)
    return config


def _from_dataset(name: str, task: str) -> dict[str, object]:
    known = DATASETS.get(name)
    if known is None or known.kind != "rows":
        raise DataError(f"{task}: there is no dataset {name!r}; `shardyard data list` shows all.")
    files = {split: [str(path) for path in dataset_files(name, split)] for split in known.num_rows}
    return {"dataset_path": "parquet", "dataset_kwargs": {"data_files": files}}


def _numbers(metrics: dict[str, object]) -> dict[str, float]:
    """`acc,none` → `acc`."""
    return {
        name.partition(",")[0]: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not name.partition(",")[0].endswith("_stderr")
    }


# Metrics of lm-eval that are the share of documents answered correctly.
_SHARES = ("acc", "acc_norm", "acc_mutual_info", "exact_match")


def _with_errors(metrics: dict[str, float], documents: object) -> dict[str, float]:
    """The metrics with the standard errors of those that are shares of documents, as lm-eval computes them."""
    if isinstance(documents, int):
        metrics |= {f"{name}_stderr": of_share(metrics[name], documents) for name in _SHARES if name in metrics}
    return metrics


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
