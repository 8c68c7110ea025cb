"""`shardyard sample` and `eval`: using a trained model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardyard.cli.options import AsJson, RunName, RunsDir
from shardyard.cli.view import output
from shardyard.errors import UsageError
from shardyard.objectives.registry import objective_spec
from shardyard.tracking.run.folder import RunFolder, runs_folder

if TYPE_CHECKING:
    from shardyard.engine.inference.load import Trained

# The end of the name of a standard error.
STDERR = "_stderr"

Step = Annotated[
    int | None,
    typer.Option("--step", metavar="STEP", help="Use the checkpoint of this step instead of the final model."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Also load files of the run that may execute code of their author."),
]


def sample(
    run: RunName,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="Text to continue, translate or classify; a recording's file.")
    ],
    step: Step = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Length of a continuation.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="NUMBER", min=0.0, help="0 always takes the most likely token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random choice.")] = 0,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image", metavar="FILE", help="Picture that a vision–language model is asked about; repeatable."
        ),
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
    runs_dir: RunsDir = None,
) -> None:
    """Continue a prompt with a trained model.

    An encoder–decoder transforms it, a vision–language model answers, and a classifier or tagger says what it predicts.
    A model of speech writes what it hears in the files that are named instead of prompts.
    """
    folder = _open(run, runs_dir)  # before torch is imported, so that an unknown name is refused immediately
    from shardyard.engine.inference.load import load_trained

    trained = load_trained(folder, step, trust=trust, report=output.note)
    texts = trained.sample(
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        pictures=images or (),
        report=output.note,
    )
    predicted = objective_spec(trained.recipe.objective).predicts is not None
    apart = (
        predicted
        or objective_spec(trained.recipe.objective).hears
        or trained.model.config.is_encoder_decoder
        or bool(images)
    )
    for prompt, text in zip(prompts, texts, strict=True):
        if as_json:
            output.line(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
        else:
            output.line(f"{prompt}\n  {text}" if apart else f"{prompt}{text}")


def eval(
    run: RunName,
    step: Step = None,
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", min=1, help="Number of held-out rows. Default: the recipe's.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="lm-eval task by name or YAML file; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Documents per task.")] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="COLUMN", help="Zero-shot classification by the names in this column."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Sentence with {} for the name of a class; repeatable."),
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
    runs_dir: RunsDir = None,
) -> None:
    """Measure a trained model on the run's held-out data, by zero-shot classification, or on tasks of lm-eval."""
    if prompts and classes is None:
        raise UsageError("--prompt needs --classes COLUMN, the column with the class names.")
    folder = _open(run, runs_dir)
    if tasks and classes is None:
        result = _on_tasks(folder, tasks, step, limit, trust)
    else:
        from shardyard.engine.inference.load import load_trained

        trained = load_trained(folder, step, trust=trust, report=output.note)
        result = trained.evaluate(rows) if classes is None else _on_classes(trained, classes, prompts or ["{}"], rows)
    if as_json:
        output.print_json(result)
    else:
        output.print_table(("what", "value"), _with_errors(result))


def _on_classes(trained: Trained, classes: str, prompts: list[str], rows: int | None) -> dict[str, object]:
    from shardyard.engine.inference.zero_shot import measure_zero_shot

    return measure_zero_shot(trained, classes, prompts, rows)


def _on_tasks(
    folder: RunFolder, tasks: list[str], step: int | None, limit: int | None, trust: bool
) -> dict[str, object]:
    from shardyard.engine.inference.lm_eval import measure_run

    measured = measure_run(folder, tasks, step=step, limit=limit, trust=trust)
    return {f"{task} {metric}": value for task, found in measured.items() for metric, value in found.items()}


def _open(run: str, runs_dir: Path | None) -> RunFolder:

    return RunFolder.open(runs_folder(runs_dir), run)


def _with_errors(result: Mapping[str, object]) -> list[tuple[str, str]]:
    """Name and value of each metric, with its standard error behind it if there is one."""
    shown = {name: value for name, value in result.items() if not name.endswith(STDERR)}
    errors = {name: _number(result[f"{name}{STDERR}"]) for name in shown if f"{name}{STDERR}" in result}
    return [(name, _number(value) + (f" ± {errors[name]}" if name in errors else "")) for name, value in shown.items()]


def _number(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)
