"""The model card of an exported model, filled from the run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from shardyard import plugins
from shardyard.objectives.registry import objective_spec
from shardyard.planning.plan import RunPlan
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.schema import Recipe, Source
from shardyard.redaction import scrub
from shardyard.units import format_count


@dataclass(frozen=True)
class TrainedRun:
    """The facts about a model's run that its card states: run id, last step, and origin.

    base: name of the initial weights, as the recipe gave it; None if they were random.
    """

    id: str
    step: int
    provenance: Mapping[str, Any]
    base: str | None = None


# A hub id, with or without a revision.
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@\S+)?")


def model_card(
    recipe: Recipe,
    plan: RunPlan,
    run: TrainedRun,
    measured: Mapping[str, float],
    errors: Mapping[str, float] | None = None,
    *,
    adapter: bool = False,
) -> str:
    """Text of README.md, with the metadata block that the Hugging Face hub reads.

    Args:
        measured: metrics of the latest evaluation by name, empty if there was none.
        errors: standard errors of some of them, by name.
        adapter: the folder holds the adapter alone.
    """
    provenance = run.provenance
    sources = "\n".join(f"- {_source(source)}" for source in recipe.data.train)
    spec = objective_spec(recipe.objective)
    known = {name: f" ± {error:.4f}" for name, error in (errors or {}).items()}
    numbers = ", ".join(f"{name} {value:.4f}{known.get(name, '')}" for name, value in measured.items())
    quality = f"{numbers} on {recipe.evaluate.rows} held-out rows" if numbers else "not measured"
    vocabulary = f", {plan.architecture.vocabulary} entries" if spec.text else ""
    size = format_count(plan.architecture.parameters)
    each = f"{plan.tokens_per_step} tokens" if not plan.stages else f"{len(plan.stages)} stages"
    length = f"{run.step} of {plan.steps} steps of {each}"
    how = f"{plan.precision}, ZeRO stage {recipe.zero.stage}, {plan.world.size} ranks"
    rate = f"peak learning rate {recipe.optimizer.lr:g}, {recipe.schedule.name} schedule"
    limits = "\n".join(f"- {text}" for text in _limits(recipe, plan, run, measured))
    use = f"{spec.card}\n\n" if spec.card else ""
    text = f"""---
{_metadata(recipe, run, adapter=adapter)}
---

# {recipe.name}

{recipe.description}

| | |
|---|---|
| architecture | {recipe.model.label}, {size} parameters |
| paper | {recipe.paper or "none given"} |
| base model | {_base(recipe, run)} |
| licence | {_licence(recipe, run)} |
| objective | {spec.name} |
| tokenizer | {recipe.tokenizer if spec.text else "none"}{vocabulary} |
| training | {length}, {how} |
| optimizer | {recipe.optimizer.name}, {rate} |
| held-out data | {quality} |
| run | {run.id} |

## Data

{sources}

## Use

{use}{_how_to_load_adapter(recipe, plan, run) if adapter else _how_to_load(recipe)}

## Limits

{limits}

## Provenance

```json
{json.dumps(provenance, indent=2, sort_keys=True)}
```
"""
    return scrub(text)


def _metadata(recipe: Recipe, run: TrainedRun, *, adapter: bool) -> str:
    library = "pytorch" if recipe.model.module is not None else "peft" if adapter else "transformers"
    base = _hub_id(run.base)
    # The hub resolves these names, so that folders and names of runs do not belong here.
    found = ModelCardData(
        library_name=library,
        pipeline_tag=objective_spec(recipe.objective).task,
        tags=["shardyard", recipe.model.label, *(["lora"] if adapter else [])],
        license=recipe.license,
        base_model=base,
        datasets=[name for source in recipe.data.train if (name := _hub_id(source.path))] or None,
    )
    relation = f"\nbase_model_relation: {'adapter' if adapter else 'finetune'}" if base is not None else ""
    return f"{found.to_yaml()}{relation}"


def _hub_id(name: str | None) -> str | None:
    """`org/name` of a hub; None for anything else."""
    found = _HUB_ID.fullmatch(name or "")
    return found[1] if found and not Path(found[1]).expanduser().exists() else None


def _base(recipe: Recipe, run: TrainedRun) -> str:
    if recipe.model.pretrained is None:
        return "none: trained from random weights"
    return run.base or recipe.model.pretrained


def _licence(recipe: Recipe, run: TrainedRun) -> str:
    if recipe.license is not None:
        return recipe.license
    base = "" if recipe.model.pretrained is None else "; that of the base model applies to what was taken from it"
    return f"not stated{base}"


def _limits(recipe: Recipe, plan: RunPlan, run: TrainedRun, measured: Mapping[str, float]) -> Iterator[str]:
    """What the facts of the run say about what the model cannot do."""
    tokens = format_count(plan.tokens_at(run.step))
    yield f"It was trained on {tokens} tokens of the data above and knows only what they, and its base model, contain."
    if plan.architecture.positions is not None:
        longest = recipe.data.sequence_length
        rows = f"; rows of training had at most {longest}" if longest else ""
        yield f"It reads at most {plan.architecture.positions} tokens{rows}."
    if measured:
        yield "It was measured only on held-out rows of the same data, not on tasks, for safety, or for bias."
    else:
        yield "It was not measured."
    if objective_spec(recipe.objective).generates:
        yield "Its text may be false, offensive or copied from its data: check it before you rely on it."


def _how_to_load_adapter(recipe: Recipe, plan: RunPlan, run: TrainedRun) -> str:
    head, size = objective_spec(recipe.objective).auto_class_of(recipe.model.family), plan.architecture
    base = _hub_id(run.base) or "path/to/the/base/model"
    resized = size.pretrained_vocabulary is not None
    resize = f"\nbase.resize_token_embeddings({size.vocabulary})" if resized else ""
    adapter = recipe.model.adapter
    quantized = ""
    if adapter is not None and adapter.quantize is not None:
        quantized = f" It was trained over weights in {adapter.quantize}; over others its results differ a little."
    return f"""This is a LoRA adapter; it needs its base model.{quantized}

```python
from peft import PeftModel
from transformers import {head}

base = {head}.from_pretrained("{base}"){resize}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```"""


def _how_to_load(recipe: Recipe) -> str:
    spec = objective_spec(recipe.objective)
    head = spec.auto_class_of(recipe.model.family)
    tokenizer = '\ntokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")' if spec.text else ""
    if recipe.model.module is None:
        return f"""```python
from transformers import {head}{", AutoTokenizer" if spec.text else ""}

model = {head}.from_pretrained("path/to/this/folder"){tokenizer or chr(10)}
```"""
    name = recipe.model.label
    return f"""The model is `{plugins.short(recipe.model.module)}`, not one of transformers: loading it takes its code.

```python
import json

from huggingface_hub import load_torch_model{chr(10) + "from transformers import AutoTokenizer" if spec.text else ""}

with open("path/to/this/folder/config.json") as file:
    model = {name}(**json.load(file)["arguments"])
load_torch_model(model, "path/to/this/folder"){tokenizer}
```"""


def _source(source: Source) -> str:
    name = f"embedded corpus {source.source}" if source.source else str(source.path)
    extras = [part for part in (source.config, source.revision, source.split) if part]
    known = DATASETS.get(source.source or source.path or "")
    licence = f", licence {known.licence}" if known is not None else ""
    return f"{name}{' (' + ', '.join(extras) + ')' if extras else ''}, weight {source.weight:g}{licence}"
