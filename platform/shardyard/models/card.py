"""The model card of an exported model, filled from what the run knows of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shardyard.recipe.plan import RunPlan
from shardyard.recipe.schema import Recipe, Source
from shardyard.units import format_count


def model_card(recipe: Recipe, plan: RunPlan, info: Mapping[str, Any], loss: float | None) -> str:
    """Text of README.md, with the metadata block that the Hugging Face hub reads.

    Args:
        info: the run's run.json (id, provenance).
        loss: held-out loss in nats a token, if it was measured.
    """
    provenance = info.get("provenance") or {}
    sources = "\n".join(f"- {_source(source)}" for source in recipe.data.train)
    rows = recipe.evaluate.rows
    measured = f"{loss:.4f} nats a token on {rows} held-out rows" if loss is not None else "not measured"
    size = format_count(plan.architecture.parameters)
    length = f"{info.get('step', plan.steps)} of {plan.steps} steps of {plan.tokens_per_step} tokens"
    how = f"{recipe.train.precision}, ZeRO stage {recipe.zero.stage}, {plan.world.size} ranks"
    rate = f"peak learning rate {recipe.optimizer.lr:g}, {recipe.schedule.name} schedule"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [shardyard, {recipe.model.family}]
---

# {recipe.name}

{recipe.description}

| | |
|---|---|
| architecture | {recipe.model.family}, {size} parameters |
| paper | {recipe.paper or "none given"} |
| tokenizer | {recipe.tokenizer}, {plan.architecture.vocabulary} entries |
| training | {length}, {how} |
| optimizer | {recipe.optimizer.name}, {rate} |
| held-out loss | {measured} |
| run | {info.get("id", "unknown")} |

## Data

{sources}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

## Provenance

```json
{json.dumps(provenance, indent=2, sort_keys=True)}
```
"""


def _source(source: Source) -> str:
    name = f"embedded corpus {source.source}" if source.source else str(source.path)
    extras = [part for part in (source.config, source.revision, source.split) if part]
    return f"{name}{' (' + ', '.join(extras) + ')' if extras else ''}, weight {source.weight:g}"
