"""One cell of the matrix: a model type under an objective, from its recipe to its exported model, in one process."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import distributed

from breadth.by_hand import TOKENIZERS, by_hand
from breadth.matrix import in_short
from breadth.narrow import InvalidInTransformersError, Narrow, find
from shardyard.engine.inference import load
from shardyard.engine.inference.load import Trained, load_trained
from shardyard.engine.job import Job
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.errors import RecipeError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.loading.load import dump_recipe, load_recipe, parse_recipe
from shardyard.recipe.schema import Recipe
from shardyard.replaced import replaced
from shardyard.tracking.run.folder import read_metrics
from support.tiny import tiny_job

# ZeRO-3 collects garbage at each start, which takes a second among all that has been imported by now.
gc.freeze()
MEMORY_BYTES = 8 << 30
TOLERANCE = 1e-4
# Of a step, and of an evaluation.
ROWS = 4
# What the probes of a plan find in a family whose training would be wrong.
_REFUSALS = ("is not causal", "nothing keeps the documents of a row apart")
# Where in our sources an exception of a training passed by: the innermost that matches names the step.
_PLACES = (
    ("engine/hooks/evaluate.py", "evaluate"),
    ("models/export/", "export"),
    ("engine/checkpoint/weights.py", "export"),
    ("engine/hooks/checkpoints.py", "save"),
)


@dataclass
class Result:
    """What happened to one cell.

    status: `passed`, `failed` (at `step`), `invalid`: plain transformers refuses each configuration that was tried, or
        `refused`: the plan finds that its training would be wrong.
    seconds: step → time; the last step is the one that failed.
    """

    objective: str
    family: str
    status: str = "passed"
    step: str = ""
    error: str = ""
    note: str = ""
    parameters: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class _FailedError(Exception):
    """A check of a step that was not met."""


def run_cell(objective: str, family: str, folder: Path, output: Path, alike: Mapping[str, Any] | None = None) -> None:
    """Run every step, and write the result as one line of JSON; the entry point of a process.

    Args:
        alike: the result of a cell with the same model, whose configuration is taken.
    """
    _limit()
    result = Result(objective, family)
    with open(folder / "log", "w") as log, _redirected(log):
        try:
            _steps(result, folder, alike)
        except InvalidInTransformersError as error:
            result.status, result.error = "invalid", str(error)
        except BaseException as error:  # noqa: BLE001  whatever it is, it is what the table shows
            result.status, result.error = "failed", _short(error)
            result.step = _place(error) or result.step
            if "needs a package that is not installed" in str(error):
                result.status = "invalid"
            if isinstance(error, RecipeError) and any(text in str(error) for text in _REFUSALS):
                result.status = "refused"
            traceback.print_exc(file=log)
    temporary = output.with_suffix(".partial")
    temporary.write_text(json.dumps(asdict(result)))
    temporary.rename(output)
    os._exit(0)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    os.environ.update(HF_HUB_OFFLINE="1", GLOO_SOCKET_IFNAME="lo", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


@contextlib.contextmanager
def _redirected(log: Any) -> Iterator[None]:
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _place(error: BaseException) -> str | None:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return next((step for file in reversed(files) for part, step in _PLACES if part in file), None)


def _steps(result: Result, folder: Path, alike: Mapping[str, Any] | None) -> None:
    def step(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        result.step = name
        started = time.monotonic()
        try:
            return function(*arguments)
        finally:
            result.seconds[name] = round(time.monotonic() - started, 2)

    narrow = step("narrow", _narrow, result, alike)
    result.parameters, result.config = narrow.parameters, narrow.config
    fields = _fields(result, narrow, folder)
    stages = (2,) if in_short(result.objective) else (2, 3)
    recipes = step("validate", lambda: {at: _validated({**fields, "zero": {"stage": at}}, folder) for at in stages})
    jobs = step("plan", lambda: {at: tiny_job(recipe, folder / f"runs{at}") for at, recipe in recipes.items()})
    store = distributed.FileStore(f"{folder}/store", 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    rank = Rank(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    first = jobs[2]
    if 3 in jobs:
        step("train 2", run_rank, Job(first.recipe, first.plan, first.folder, 1), rank)
        step("resume", run_rank, first, rank)
        step("train 3", run_rank, jobs[3], rank)
        step("equal", _equal, jobs)
    else:
        step("train 2", run_rank, first, rank)
    notes = [step("load", _same_evaluation, first), step("generate", _generates, first)]
    result.note = "; ".join(filter(None, notes))
    result.step = ""


def _narrow(result: Result, alike: Mapping[str, Any] | None) -> Narrow:
    written = by_hand(result.objective, result.family)
    if written is None and alike is not None:
        if alike["status"] == "invalid":
            raise InvalidInTransformersError(alike["error"])
        written = Narrow(alike["config"], parameters=alike["parameters"])
    found = written or find(result.family, objective_spec(result.objective).auto_class_of(result.family))
    tokenizer = TOKENIZERS.get(result.family)
    return replace(found, sections={**found.sections, "tokenizer": tokenizer}) if tokenizer else found


def _validated(fields: dict[str, Any], folder: Path) -> Recipe:
    """The recipe as `shardyard validate` reads it from a file."""
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(parse_recipe(fields)), encoding="utf-8")
    return load_recipe(str(path)).recipe


def _fields(result: Result, narrow: Narrow, folder: Path) -> dict[str, Any]:
    """The tiny recipe of the objective with the model of this cell."""
    case = importlib.import_module(f"support.objectives.{result.objective}")
    fields = case.recipe_fields(case.write_data(folder))
    config = dict(narrow.config)
    before = fields["model"]
    labels = before.get("config", {}).get("num_labels")
    if labels is not None:
        config["num_labels"] = labels
    fields["model"] = {"family": result.family, "config": config, "dropout": 0.0}
    if "labels" in before:
        fields["model"]["labels"] = before["labels"]
    if "image" in fields:
        fields["image"] = {"size": narrow.image_size} if narrow.image_size else {}
    for section, values in narrow.sections.items():
        fields[section] = {**fields.get(section, {}), **values} if isinstance(values, dict) else values
    fields["train"] = {"steps": 2, "global_batch": ROWS, "precision": "fp32", "seed": 7}
    fields["optimizer"] = {"name": "adamw", "lr": 1e-4}
    fields["schedule"] = {"name": "constant"}
    fields["checkpoint"] = {"every": 2}
    fields["evaluate"] = {"every": 2, "rows": ROWS}
    if objective_spec(result.objective).decodes:
        fields["evaluate"]["generate_rows"] = 2
    return fields


def _equal(jobs: dict[int, Job]) -> None:
    """Stage 2 with a break and stage 3 without have the same losses and end in the same weights."""
    curves = {at: _losses(job) for at, job in jobs.items()}
    for two, three in zip(curves[2], curves[3], strict=True):
        if not math.isclose(two, three, rel_tol=TOLERANCE, abs_tol=1e-7):
            raise _FailedError(f"losses of stage 2 {curves[2]} and stage 3 {curves[3]} differ")
    if len(set(curves[2])) < 2:
        raise _FailedError(f"nothing is learnt: {curves[2]}")
    weights = {at: load_file(job.folder.path / "final" / "model.safetensors") for at, job in jobs.items()}
    if weights[2].keys() != weights[3].keys():
        raise _FailedError(f"stage 3 exports other weights: {sorted(weights[2].keys() ^ weights[3].keys())[:4]}")
    for name, weight in weights[2].items():
        if weight.shape != weights[3][name].shape:
            raise _FailedError(f"the exported {name} of stage 3 has shape {tuple(weights[3][name].shape)}")


def _losses(job: Job) -> list[float]:
    by_step = {line["step"]: line["train/loss"] for line in read_metrics(job.folder.metrics) if "train/loss" in line}
    return [by_step[step] for step in sorted(by_step)]


def _same_evaluation(job: Job) -> str:
    """The exported model, loaded with its Auto class, measures what the training measured, and no weight is new."""
    lines = [line for line in read_metrics(job.folder.metrics) if "eval/validation/loss" in line]
    recorded = lines[-1]["eval/validation/loss"]
    of = getattr(transformers, objective_spec(job.recipe.objective).auto_class_of(job.recipe.model.family))
    final = job.folder.path / "final"
    model, about = of.from_pretrained(final, output_loading_info=True)
    if about["missing_keys"] or about["unexpected_keys"]:
        raise _FailedError(
            f"missing {list(about['missing_keys'])[:3]}, unexpected {list(about['unexpected_keys'])[:3]}"
        )
    trained = load_trained(job.folder)
    found = _evaluated(trained)
    if math.isclose(found, recorded, rel_tol=1e-4, abs_tol=1e-6):
        return ""
    if changed := _changed_by_loading(model, final.parent / "again"):
        return f"transformers' own loading changes {changed}"
    if _evaluated(trained) != found:
        return "transformers' own model computes with random numbers in evaluations"
    raise _FailedError(f"the exported model has loss {found}, the trained one {recorded}")


def _evaluated(trained: Trained) -> float:
    """In the batches of the training, because padding changes what some families compute (canine, fnet)."""
    train = trained.recipe.train.model_copy(update={"micro_batch": ROWS})
    recipe = trained.recipe.model_copy(update={"train": train})
    with replaced(load, "_PASSES", 1):
        return float(str(replace(trained, recipe=recipe).evaluate()["loss"]))


def _changed_by_loading(model: Any, folder: Path) -> str:
    """The first weight that plain transformers does not load as it saved it; "" if there is none."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    before, after = model.state_dict(), type(model).from_pretrained(folder).state_dict()
    return next((name for name, value in before.items() if not torch.equal(value, after[name])), "")


def _generates(job: Job) -> str:
    """Greedy text with a cache is that without one; a family that generates with no cache in transformers passes."""
    spec = objective_spec(job.recipe.objective)
    if not (spec.generates or spec.decodes) or set(spec.columns.values()) - {"text", "messages"}:
        return ""
    of = getattr(transformers, spec.auto_class)
    model = of.from_pretrained(job.folder.path / "final").eval()
    try:
        made = [_greedy(model, cache=cache) for cache in (False, True)]
    except Exception as error:
        plain = of.from_config(model.config).eval()
        try:
            _greedy(plain, cache=True)
        except Exception as own:  # noqa: BLE001  transformers itself cannot
            return f"transformers' own generate fails: {_short(own)[:120]}"
        raise _FailedError(_short(error)) from error
    if made[0] != made[1]:
        plain = of.from_config(model.config).eval()
        if _greedy(plain, cache=False) != _greedy(plain, cache=True):
            return "transformers' own cache changes the text"
        raise _FailedError(f"without cache {made[0][-4:]}, with cache {made[1][-4:]}")
    return ""


def _greedy(model: Any, *, cache: bool) -> list[int]:
    ids = torch.arange(12).view(1, 12) + 70
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": cache}
    with torch.no_grad():
        made: list[int] = model.generate(input_ids=ids, **options)[0].tolist()
    return made


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        pid = os.fork()
        if pid == 0:
            run_cell(sys.argv[1], sys.argv[2], Path(scratch), Path(scratch) / "result.json")
        os.waitpid(pid, 0)
        print((Path(scratch) / "log").read_text()[-3000:], file=sys.stderr)  # noqa: T201
        print((Path(scratch) / "result.json").read_text())  # noqa: T201
