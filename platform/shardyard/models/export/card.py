"""The model card of an exported model, filled from the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardyard import plugins
from shardyard.objectives.registry import objective_spec
from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe, Source
from shardyard.redaction import scrub
from shardyard.units import format_count


@dataclass(frozen=True)
class TrainedRun:
    """The facts about a model's run that its card states: run id, last step, and origin."""

    id: str
    step: int
    provenance: Mapping[str, Any]


def model_card(
    recipe: Recipe,
    plan: RunPlan,
    run: TrainedRun,
    measured: Mapping[str, float],
    errors: Mapping[str, float] | None = None,
) -> str:
    """Text of README.md, with the metadata block that the Hugging Face hub reads.

    Args:
        measured: metrics of the latest evaluation by name, empty if there was none.
        errors: standard errors of some of them, by name.
    """
    provenance = run.provenance
    sources = "\n".join(f"- {_source(source)}" for source in recipe.data.train)
    spec = objective_spec(recipe.objective)
    known = {name: f" ± {error:.4f}" for name, error in (errors or {}).items()}
    numbers = ", ".join(f"{name} {value:.4f}{known.get(name, '')}" for name, value in measured.items())
    quality = f"{numbers} on {recipe.evaluate.rows} held-out rows" if numbers else "not measured"
    vocabulary = f", {plan.architecture.vocabulary} entries" if spec.text else ""
    size = format_count(plan.architecture.parameters)
    length = f"{run.step} of {plan.steps} steps of {plan.tokens_per_step} tokens"
    how = f"{plan.precision}, ZeRO stage {recipe.zero.stage}, {plan.world.size} ranks"
    rate = f"peak learning rate {recipe.optimizer.lr:g}, {recipe.schedule.name} schedule"
    use = f"{spec.card}\n\n" if spec.card else ""
    text = f"""---
library_name: {"transformers" if recipe.model.module is None else "pytorch"}
pipeline_tag: {spec.task}
tags: [shardyard, {recipe.model.label}]
---

# {recipe.name}

{recipe.description}

| | |
|---|---|
| architecture | {recipe.model.label}, {size} parameters |
| paper | {recipe.paper or "none given"} |
| objective | {spec.name} |
| tokenizer | {recipe.tokenizer if spec.text else "none"}{vocabulary} |
| training | {length}, {how} |
| optimizer | {recipe.optimizer.name}, {rate} |
| held-out data | {quality} |
| run | {run.id} |

## Data

{sources}

## Use

{use}{_how_to_load(recipe)}

## Provenance

```json
{json.dumps(provenance, indent=2, sort_keys=True)}
```
"""
    return scrub(text)


def _how_to_load(recipe: Recipe) -> str:
    spec = objective_spec(recipe.objective)
    tokenizer = '\ntokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")' if spec.text else ""
    if recipe.model.module is None:
        return f"""```python
from transformers import {spec.auto_class}{", AutoTokenizer" if spec.text else ""}

model = {spec.auto_class}.from_pretrained("path/to/this/folder"){tokenizer or chr(10)}
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
    return f"{name}{' (' + ', '.join(extras) + ')' if extras else ''}, weight {source.weight:g}"
