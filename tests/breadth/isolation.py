"""Isolation and causality of every causal family of the installed transformers, as a table.

`PYTHONPATH=tests python -m breadth.isolation` probes what `isolation.jsonl` does not have for this version of
transformers (a few minutes for all) and writes docs/develop/isolation.md; `--again FAMILY …` probes anew.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from breadth.defaults import completion
from shardyard.models.build import architecture_config
from shardyard.models.probes.probe import probe_recipe
from shardyard.planning.findings import Findings
from shardyard.recipe.isolation import ISOLATIONS
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Recipe
from support.objectives.picture_families import FAMILIES as PICTURE_FAMILIES
from support.objectives.picture_families import family_of

RESULTS = Path(__file__).with_suffix(".jsonl")
PAGE = Path(__file__).parents[2] / "docs" / "develop" / "isolation.md"
FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
ROW = 512
VOCABULARY = 128


@dataclass(frozen=True)
class Line:
    """The findings of one family. invalid: why transformers cannot build it; then there are none."""

    family: str
    version: str
    invalid: str = ""
    findings: Findings = field(default_factory=Findings)

    @property
    def outcome(self) -> str:
        """What isolates documents; `refused` if nothing does or the family is not causal; `invalid`."""
        if self.invalid:
            return "invalid"
        return "refused" if self.findings.refusals else self.findings.isolation or "refused"


def probe(family: str) -> Line:
    """The findings for a family's completed default configuration under `causal_lm`, as a plan of it has them."""
    version = transformers.__version__
    ids = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    try:
        recipe = _recipe(family)
        config = architecture_config(recipe.model, vocabulary=VOCABULARY, special_tokens=ids)
        findings = probe_recipe(recipe, config)
        if any(notice.startswith("the model was not probed") for notice in findings.notices):
            with torch.device("meta"):
                transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # noqa: BLE001 - whatever transformers raises, it is its own default configuration
        return Line(family, version, invalid=f"{type(error).__name__}: {' '.join(str(error).split())}"[:160])
    return Line(family, version, findings=findings)


def _recipe(family: str) -> Recipe:
    default = transformers.AutoConfig.for_model(family)
    return parse_recipe(
        {
            "name": "probe",
            "model": {
                "family": family,
                "config": completion(family, default),
                "probes": {"gradient": False, "tied_weights": False},
            },
            "data": {"sequence_length": ROW, "train": [{"source": "python-docs"}]},
            "train": {"steps": 1, "global_batch": 1},
            "optimizer": {"name": "adamw", "lr": 1.0e-3},
        }
    )


def read() -> dict[str, Line]:
    """The stored lines of the installed version of transformers, by family."""
    if not RESULTS.exists():
        return {}
    lines = (_line(json.loads(text)) for text in RESULTS.read_text(encoding="utf-8").splitlines())
    return {line.family: line for line in lines if line.version == transformers.__version__}


def _line(fields: Any) -> Line:
    found = fields["findings"]
    for name in ("refusals", "notices"):
        found[name] = tuple(found[name])
    return Line(fields["family"], fields["version"], fields["invalid"], Findings(**found))


def write(lines: dict[str, Line]) -> None:
    """Store the lines, sorted by family."""
    texts = [json.dumps(asdict(lines[family]), sort_keys=True) for family in sorted(lines)]
    RESULTS.write_text("\n".join(texts) + "\n", encoding="utf-8")


def page(lines: Sequence[Line]) -> str:
    """The page: how many families, and which, each way isolates; what is refused."""
    version = lines[0].version
    counts = Counter(line.outcome for line in lines)
    names = {outcome: [line.family for line in lines if line.outcome == outcome] for outcome in counts}
    decoders = sorted(line.family for line in lines if line.findings.decoder)
    table = "".join(f"| {outcome} | {counts[outcome]} | {', '.join(names[outcome])} |\n" for outcome in _order(counts))
    refusals = "".join(f"- `{line.family}`: {_why(line)}\n" for line in lines if line.outcome == "refused")
    return (
        f"# Isolation and causality\n\n"
        f"All {len(lines)} causal families of transformers {version}, their default configurations (completed "
        f"where a number is missing) with narrow layers, "
        f"as [the probes](../plan.md#probes) of a plan find them: what keeps the documents of a row apart "
        f"(`data.isolation`), or that the family is refused. No family has a leak that is not refused. Other "
        f"configurations of a family are probed on their own: lfm2 with convolutions needs `rows`, for example. "
        f"Families whose default configuration transformers cannot build are `invalid`. Written by "
        f"tests/breadth/isolation.py.\n\n"
        f"| isolation | families | which |\n|---|---|---|\n{table}\n"
        f"Causal only with `is_decoder`, which is set: {', '.join(decoders)}.\n\n"
        f"Refused:\n\n{refusals}\n{_pictures()}"
    )


def _pictures() -> str:
    """The section about models that read pictures within text: what `test_no_family_sees_an_answer` shows."""
    families = sorted({family_of(name) for name in PICTURE_FAMILIES})
    return (
        "## Pictures within text\n\n"
        "Rows of `vision_language` hold one conversation each, so there is nothing to isolate. A plan makes two rows "
        "by the model's own processor and puts them through a narrow copy; tests/unit/engine/test_picture_probes.py "
        f"does so for all {len(families)} families, in training and in evaluation mode.\n\n"
        "| what is checked | families without a leak |\n|---|---|\n"
        "| a changed token of an answer moves no logit before it: of answers, questions or pictures | "
        f"{', '.join(families)} |\n"
        "| a row has the same logits alone and padded beside a longer row with another picture | the same |\n\n"
        "What is meant to go both ways is left alone: Gemma 3 attends both ways among the tokens of a picture, and "
        "PaliGemma over picture and question, its prefix. Neither holds a target.\n"
    )


def _order(counts: Counter[str]) -> Iterator[str]:
    return (outcome for outcome in (*ISOLATIONS, "refused", "invalid") if outcome in counts)


def _why(line: Line) -> str:
    found = line.findings
    return "not causal" if found.refusals else f"nothing isolates ({found.isolation_why})"


def main() -> None:
    """Probe what is missing, store it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", nargs="*", metavar="FAMILY", default=[])
    again = parser.parse_args().again
    transformers.logging.set_verbosity_error()
    lines = {family: line for family, line in read().items() if family in FAMILIES and family not in again}
    for family in FAMILIES:
        if family not in lines:
            lines[family] = probe(family)
            print(family, lines[family].outcome, flush=True)  # noqa: T201 - a script
            write(lines)
    ordered = [lines[family] for family in sorted(lines)]
    PAGE.write_text(page(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
